import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot import NearestMean, SupportSet
from fewshot.automatic.label_issues import LabelIssue, find_label_issues
from fewshot.model_selection.calibration import temperature
from fewshot.model_selection.cross_validation import OutOfFold, cross_validate
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import Conflict


def naive(p: Tensor, labels: Tensor, judged: Tensor) -> list[tuple[int, int]]:
    """Rows and suggestions, one image and one class at a time."""
    n, n_classes = p.shape
    rows = [i for i in range(n) if judged[i]]
    average: list[float | None] = []
    for k in range(n_classes):
        own = [float(p[i, k]) for i in rows if labels[i] == k]
        average.append(sum(own) / len(own) if own else None)
    found = []
    for i in rows:
        label = int(labels[i])
        reached = [
            (float(p[i, k]), k) for k, mean in enumerate(average) if mean and float(p[i, k]) >= mean
        ]
        own_average = average[label]
        assert own_average is not None
        if float(p[i, label]) >= own_average or not reached:
            continue
        best, suggested = max(reached)
        if best > float(p[i, label]):
            found.append((best - float(p[i, label]), i, suggested))
    return [(i, suggested) for _, i, suggested in sorted(found, reverse=True)]


@pytest.mark.parametrize("seed", range(10))
def test_the_suspects_are_those_of_a_loop_over_images_and_classes(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (80,), generator=g)
    logits = 2 * torch.randn(80, 5, generator=g)
    logits[torch.arange(80), labels] += 2
    p = torch.softmax(logits, dim=1)
    judged = torch.rand(80, generator=g) < 0.8
    p[~judged] = torch.nan
    found = find_label_issues(p, labels, judged)
    assert [(s.row, s.suggested) for s in found] == naive(p, labels, judged)
    assert 0 < len(found) < 40
    for s in found:
        assert s.label == labels[s.row]
        assert s.p_label == pytest.approx(float(p[s.row, s.label]))
        assert s.p_suggested == pytest.approx(float(p[s.row, s.suggested]))
        assert not s.duplicate


def test_flipped_labels_are_found_and_little_else() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(600) % 6
    centers = normalize(torch.randn(6, 32, generator=g))
    features = normalize(centers[truth] + 0.6 * normalize(torch.randn(600, 32, generator=g)))
    flipped = torch.randperm(600, generator=g)[:30]
    labels = truth.clone()
    labels[flipped] = (truth[flipped] + torch.randint(1, 6, (30,), generator=g)) % 6
    support = SupportSet(features, labels, 6)
    *_, found = cross_validate(
        NearestMean(), lambda _: support, lambda _: None, folds(labels, seed=1)
    )
    assert isinstance(found, OutOfFold)
    p = found.probabilities(temperature(found.logits, labels))
    issues = find_label_issues(p, labels, found.judged)
    named = {s.row for s in issues}
    right = named & set(flipped.tolist())
    assert len(right) >= 0.95 * 30
    assert len(right) >= 0.9 * len(named)
    corrected = [s.suggested == truth[s.row] for s in issues if s.row in right]
    assert sum(corrected) >= 0.95 * len(corrected)


def test_duplicates_under_two_labels_come_first_and_once() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    p = torch.full((8, 3), 0.1)
    p[torch.arange(8), labels] = 0.8
    p[5] = torch.tensor([0.0, 0.9, 0.1])  # a suspect without any duplicate
    p[2] = torch.tensor([0.2, 0.7, 0.1])  # and one of a group, of which it is the odd one out
    judged = torch.ones(8, dtype=torch.bool)
    group = Conflict((2, 3, 4), (0, 1, 1))
    found = find_label_issues(p, labels, judged, [group])
    assert [s.row for s in found] == [2, 5]
    assert found[0] == LabelIssue(2, 0, 1, pytest.approx(0.2), pytest.approx(0.7), duplicate=True)  # type: ignore[arg-type]
    assert not found[1].duplicate


def test_of_duplicates_with_a_label_each_all_are_listed_and_one_not_judged_has_no_probability() -> (
    None
):
    labels = torch.tensor([0, 1, 2])
    p = torch.tensor([[0.5, 0.2, 0.3], [torch.nan] * 3, [0.1, 0.1, 0.8]])
    judged = torch.tensor([True, False, True])
    found = find_label_issues(p, labels, judged, [Conflict((0, 1, 2), (0, 1, 2))])
    assert [s.row for s in found] == [0, 1, 2]
    assert found[0].suggested == 2  # the likelier of two labels as frequent
    assert (found[1].p_label, found[1].p_suggested) == (None, None)


def test_a_class_of_no_judged_image_is_never_suggested() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    p = torch.tensor(
        [[0.1, 0.0, 0.9], [0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.9, 0.1], [0.0] * 3]
    )
    judged = torch.tensor([True, True, True, True, False])
    assert find_label_issues(p, labels, judged) == ()
