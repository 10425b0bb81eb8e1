import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError
from fewshot.metrics import wilson
from fewshot.model_selection import resampling
from fewshot.model_selection.calibration import log_loss, temperature
from fewshot.model_selection.cross_validation import OutOfFold
from fewshot.model_selection.resampling import TEMPERATURES, bootstrap, log_losses
from fewshot.model_selection.selection import select


def tried(name: str, logits: Tensor, labels: Tensor, judged: Tensor | None = None) -> OutOfFold:
    judged = torch.ones(len(labels), dtype=torch.bool) if judged is None else judged
    correct = judged & (logits.argmax(dim=1) == labels)
    return OutOfFold(name, (), judged, correct, logits, seconds=1.5)


def answers(labels: Tensor, right: Tensor, sure: float = 2.0) -> Tensor:
    """(N, 2) logits that are right where `right` is."""
    predicted = torch.where(right, labels, 1 - labels)
    return sure * torch.nn.functional.one_hot(predicted, 2).float()


def coins(seed: int, n: int, shares: list[float]) -> tuple[list[OutOfFold], Tensor]:
    """Methods that are right at random, each with its share."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=g)
    return [
        tried(f"m{i}", answers(labels, torch.rand(n, generator=g) < share), labels)
        for i, share in enumerate(shares)
    ], labels


def resampled(methods: list[OutOfFold], labels: Tensor) -> tuple[float, float, float, float]:
    """The best accuracy, and by the bootstrap its mean and its interval."""
    rows = torch.arange(len(labels))
    right = np.stack([one.correct.double().numpy() for one in methods], axis=1)
    losses = np.stack([log_losses(one.logits, rows, labels) for one in methods], axis=1)
    scores = bootstrap(right, losses, rows.numpy()).scores
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(right.mean(axis=0).max()), float(scores.mean()), float(low), float(high)


def test_the_best_of_many_coins_promises_too_much_and_the_corrected_accuracy_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 200)
    found = np.array([resampled(*coins(seed, 60, [0.5] * 12)) for seed in range(120)])
    naive, corrected, low, high = found.T
    assert naive.mean() > 0.58
    assert corrected.mean() == pytest.approx(0.5, abs=3 * corrected.std() / math.sqrt(120))
    assert corrected.std() < 0.1
    assert 0.9 <= ((low <= 0.5) & (high >= 0.5)).mean() <= 1  # rather too wide than too narrow


def test_a_single_method_gets_its_own_accuracy_and_an_interval_that_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 200)
    found = np.array([resampled(*coins(seed, 100, [0.8])) for seed in range(120)])
    own, corrected, low, high = found.T
    assert np.abs(own - corrected).max() < 0.02
    assert ((low <= 0.8) & (high >= 0.8)).mean() >= 0.93
    # 1.3 times the width of an interval from all of the images
    width = 2 * 1.96 * math.sqrt(0.16 / 100)
    assert (high - low).mean() == pytest.approx(1.31 * width, rel=0.08)


def naive_bbc(methods: list[OutOfFold], labels: Tensor, group: Tensor, resamples: int) -> float:
    """The mean over resamples drawn one group at a time, each with temperatures of its own."""
    rng = np.random.default_rng(7)
    names = torch.unique(group).tolist()
    losses = [
        [cross_entropy(one.logits / t, labels, reduction="none") for t in TEMPERATURES]
        for one in methods
    ]
    scores = []
    for _ in range(resamples):
        drawn = rng.choice(names, len(names)).tolist()
        rows = torch.cat([(group == name).nonzero()[:, 0] for name in drawn])
        out = [row for row in range(len(labels)) if int(group[row]) not in drawn]
        if not out:
            continue
        accuracy = [float(one.correct[rows].double().mean()) for one in methods]
        top = max(accuracy)
        least = top - math.sqrt(top * (1 - top) / len(names))
        near = [m for m in range(len(methods)) if accuracy[m] >= least]
        pick = min(near, key=lambda m: min(float(loss[rows].mean()) for loss in losses[m]))
        scores.append(float(methods[pick].correct[out].double().mean()))
    return float(np.mean(scores))


@pytest.mark.parametrize("n_groups", [40, 12])
def test_the_corrected_accuracy_is_that_of_a_loop_over_resamples(n_groups: int) -> None:
    methods, labels = coins(3, 40, [0.6, 0.65, 0.7, 0.55])
    g = torch.Generator().manual_seed(0)
    group = torch.cat(
        [torch.arange(n_groups), torch.randint(0, n_groups, (40 - n_groups,), generator=g)]
    )
    found = select(methods, labels, groups=group)
    assert found.accuracy == pytest.approx(naive_bbc(methods, labels, group, 600), abs=0.015)
    assert (found.n_images, found.n_groups) == (40, n_groups)


def test_resamples_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, labels = coins(3, 40, [0.6, 0.65, 0.7])
    whole = select(methods, labels)
    monkeypatch.setattr(resampling, "BLOCK", 40 * 7)
    assert select(methods, labels) == whole


def test_accuracy_decides_where_it_can() -> None:
    labels = torch.arange(400) % 2
    worse = torch.arange(400) >= 80
    better = torch.arange(400) >= 20
    # The better method is overconfident by far where it is wrong; its accuracy counts.
    methods = [
        tried("worse", answers(labels, worse), labels),
        tried("better", answers(labels, better, sure=0.01), labels),
    ]
    found = select(methods, labels)
    assert found.winner == "better"
    assert [s.name for s in found.scores] == ["better", "worse"]
    assert [s.chosen for s in found.scores] == [1.0, 0.0]
    assert found.accuracy == pytest.approx(0.95, abs=0.005)
    low, high = found.scores[1].behind
    assert 0.1 < low < 0.15 < high < 0.2
    assert found.scores[0].behind == (0.0, 0.0)


def test_within_a_standard_error_calibrated_log_loss_decides() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    right = torch.arange(200) >= 20
    # Equally right; the second knows where it is not sure, and its logits are a tenth as large.
    knows = answers(labels, right) * torch.where(right, 0.1, 0.001)[:, None]
    shuffled = answers(labels, right) * torch.rand(200, 1, generator=g)
    found = select([tried("vague", shuffled, labels), tried("knows", knows, labels)], labels)
    assert found.winner == "knows"
    assert found.scores[0].accuracy == found.scores[1].accuracy == 0.9


def test_a_method_score_says_what_the_logits_say() -> None:
    g = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 30 + [1] * 10)
    logits = torch.randn(40, 2, generator=g) + answers(labels, torch.rand(40, generator=g) < 0.9)
    (score,) = select([tried("one", logits, labels)], labels).scores
    right = logits.argmax(dim=1) == labels
    assert score.accuracy == pytest.approx(float(right.double().mean()))
    parts = (float(right[:30].double().mean()), float(right[30:].double().mean()))
    assert score.balanced_accuracy == pytest.approx(sum(parts) / 2)
    assert score.temperature == pytest.approx(temperature(logits, labels), rel=1e-3)
    assert score.log_loss == pytest.approx(log_loss(logits, labels, score.temperature))
    assert score.interval == wilson(score.accuracy, 40)
    assert 0 <= score.calibration_error < 0.3
    assert score.seconds == 1.5


def test_images_not_judged_play_no_part() -> None:
    methods, labels = coins(5, 50, [0.7, 0.6])
    judged = torch.arange(60) < 50
    longer = torch.cat([labels, torch.zeros(10, dtype=torch.int64)])
    with_more = [
        tried(m.name, torch.cat([m.logits, torch.full((10, 2), torch.nan)]), longer, judged)
        for m in methods
    ]
    assert select(with_more, longer) == select(methods, labels)


def test_near_duplicates_count_once_in_the_intervals() -> None:
    methods, labels = coins(2, 40, [0.8])
    copied = [tried("m0", methods[0].logits.repeat(5, 1), labels.repeat(5))]
    groups = torch.arange(40).repeat(5)
    once = select(methods, labels)
    many = select(copied, labels.repeat(5), groups=groups)
    assert many.scores[0].interval == pytest.approx(once.scores[0].interval)
    assert many.interval == pytest.approx(once.interval)


def test_wilsons_interval_solves_the_equation_it_is_defined_by() -> None:
    for share, n in ((0.0, 7), (0.3, 10), (0.85, 200), (1.0, 12)):
        for bound in wilson(share, n):
            assert (share - bound) ** 2 == pytest.approx(
                1.96**2 * bound * (1 - bound) / n, abs=1e-9
            )


def test_one_image_or_no_method_is_too_little() -> None:
    methods, labels = coins(0, 5, [0.5])
    with pytest.raises(UserError, match="there are 1 to hold out; label a second photo"):
        select(methods, labels, groups=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(UserError, match="no method could be tried; see why each failed"):
        select([], labels)


def test_where_all_were_right_the_interval_still_knows_how_few_they_were() -> None:
    labels = torch.arange(12) % 2
    found = select([tried("perfect", answers(labels, torch.ones(12) > 0), labels)], labels)
    assert found.accuracy == 1.0
    assert found.interval[0] == pytest.approx(12 / (12 + 1.96**2))
    assert found.interval[1] == 1.0
    found = select([tried("hopeless", answers(labels, torch.ones(12) < 0), labels)], labels)
    assert found.interval[0] == 0.0
    assert found.interval[1] == pytest.approx(1.96**2 / (12 + 1.96**2))


def test_a_resample_takes_the_temperature_that_suits_it() -> None:
    # Both are always right; one is sure of it at some temperature, the other at none.
    labels = torch.arange(40) % 2
    right = torch.ones(40) > 0
    small = tried("small", answers(labels, right) / 50, labels)
    doubt = torch.rand(40, 1, generator=torch.Generator().manual_seed(0)).pow(9)
    unsure = tried("unsure", answers(labels, right) * doubt, labels)
    assert select([unsure, small], labels).winner == "small"
