import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.model_selection.conformal import (
    by_class,
    check_coverage,
    needed,
    p_values,
    prediction_sets,
    thresholds,
)


def drawn(n: int, seed: int, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits of four classes, and labels; the first class is common, the last hard."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.5, 0.2, 0.15, 0.15]), n, True, generator=generator)
    logits = torch.randn(n, 4, generator=generator)
    lead = torch.tensor([1.5, 1.2, 0.8, 0.3])[labels]
    return sharpness * logits.scatter_add(1, labels[:, None], lead[:, None]), labels


@pytest.mark.parametrize(
    ("coverage", "n"), [(0.5, 1), (0.7, 3), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)]
)
def test_as_many_images_are_needed_as_the_rank_takes(coverage: float, n: int) -> None:
    assert needed(coverage) == n
    assert math.ceil(round((n + 1) * coverage, 9)) <= n
    assert math.ceil(round(n * coverage, 9)) > n - 1


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_hold_the_true_class_of_each_class_as_often_as_asked(coverage: float) -> None:
    right, times = torch.zeros(4), torch.zeros(4)
    for seed in range(150):  # coverage is on average over what is held out, too
        logits, labels = drawn(400, seed, sharpness=3.0)  # and however badly calibrated
        at = thresholds(by_class(logits[:200], labels[:200], 1.0), coverage)
        sets = prediction_sets(torch.softmax(logits[200:].double(), 1), at)
        hit = sets.gather(1, labels[200:, None])[:, 0]
        right += torch.bincount(labels[200:], weights=hit.double(), minlength=4)
        times += torch.bincount(labels[200:], minlength=4)
    found = right / times
    assert bool((found >= coverage - 0.02).all())
    assert float(found[0]) <= coverage + 0.03  # no larger than they must
    assert float(found[1]) <= coverage + 0.05


def test_a_class_with_too_few_images_shares_a_threshold_with_others_like_it() -> None:
    many = tuple(k / 20 for k in range(1, 20))
    few = (0.31, 0.41, 0.51, 0.61, 0.71)
    at = thresholds([many, few, few], 0.9)
    # Of 19 the 18th from above; of the ten of both others together the tenth.
    assert at.tolist() == pytest.approx([many[1], 0.31, 0.31])
    alone = thresholds([many, (0.9,)], 0.9)  # one image makes no threshold: all twenty do
    assert alone.tolist() == pytest.approx([many[1], many[1]])


def test_the_likeliest_class_is_in_every_set() -> None:
    at = torch.tensor([0.9, 0.9, 0.2], dtype=torch.float64)
    p = torch.tensor([[0.5, 0.4, 0.1], [0.4, 0.3, 0.3], [0.02, 0.9, 0.08]])
    assert prediction_sets(p, at).tolist() == [
        [True, False, False],
        [True, False, True],
        [False, True, False],
    ]


def test_what_cannot_be_promised_is_refused_with_what_can() -> None:
    held = [(0.5, 0.6), (0.7, 0.8)]
    with pytest.raises(UserError, match=r"takes 9 held-out images, and there are 4; ask for 0.8 "):
        thresholds(held, 0.9)
    assert len(thresholds(held, 0.8)) == 2
    with pytest.raises(UserError, match="there are 0; fit again with two images"):
        thresholds([], 0.9)
    for wrong in (0.0, 1.0, 90.0):
        with pytest.raises(UserError, match="above 0 and below 1"):
            thresholds(held, wrong)


def test_p_values_of_known_images_are_below_a_level_no_more_often_than_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    refused = 0.0
    for _ in range(400):
        scores = torch.randn(79, generator=generator, dtype=torch.float64)
        held = scores[:39].sort().values.tolist()
        refused += float((p_values(scores[39:], held) <= 0.05).double().mean()) / 400
    assert 0.04 < refused <= 0.055
    assert p_values(torch.tensor([0.0, 2.0, 9.0]).double(), [1.0, 2.0, 3.0]).tolist() == [
        0.25,
        0.75,
        1.0,
    ]


def test_coverage_is_checked_on_images_that_made_no_threshold() -> None:
    logits, labels = drawn(300, 5)
    fold = torch.arange(300) % 5
    found = check_coverage(logits, labels, fold, 2.0, 0.9)
    assert found is not None
    right, size = 0, 0
    p = torch.softmax(logits.double() / 2, 1)
    for i in range(300):
        others = fold != fold[i]
        at = thresholds(by_class(logits[others], labels[others], 2.0), 0.9)
        members = [k for k in range(4) if p[i, k] >= at[k] or k == int(p[i].argmax())]
        right += int(labels[i]) in members
        size += len(members)
    assert (found.found, found.size) == pytest.approx((right / 300, size / 300))
    assert check_coverage(logits[:10], labels[:10], fold[:10], 2.0, 0.9) is None


def test_what_is_kept_of_held_out_images_is_their_own_classs_probability_in_order() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(30) % 3  # of the fourth class none is held out
    raised = np.exp(logits.double().numpy() / 2.5)
    own = (raised / raised.sum(axis=1, keepdims=True))[np.arange(30), labels.numpy()]
    found = by_class(logits, labels, 2.5)
    assert [len(row) for row in found] == [10, 10, 10, 0]
    for k in range(3):
        assert list(found[k]) == pytest.approx(sorted(own[k::3]))
