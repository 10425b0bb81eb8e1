from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import NearestMean, SupportSet
from fewshot.classifier import LinearClassifier
from fewshot.method import Method
from fewshot.model_selection.folds import folds, held_out
from fewshot.model_selection.learning_curve import (
    EXPONENTS,
    CurvePoint,
    Forecast,
    LearningCurve,
    forecasts,
    learning_curve,
    sizes,
)
from fewshot.text import Text

CENTERS = normalize(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)))


def gaussians(seed: int, counts: list[int], noise: float = 0.45) -> tuple[Tensor, Tensor]:
    """Unit-norm features about five centers, and labels in no order."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=g)]
    features = CENTERS[labels] + noise * torch.randn(len(labels), 24, generator=g)
    return normalize(features), labels


def support(seed: int, counts: list[int]) -> SupportSet:
    features, labels = gaussians(seed, counts)
    return SupportSet(features, labels, 5)


@dataclass(frozen=True)
class Watched(Method):
    """Nearest mean that keeps what it was fitted to."""

    seen: list[SupportSet] = field(default_factory=list)
    least: int = 0

    name: ClassVar[str] = "watched"

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        if len(support.labels) <= self.least:
            raise UserError("too few images")
        self.seen.append(support)
        return NearestMean().fit(support, text)


@pytest.mark.parametrize("largest", range(40))
def test_sizes_double_and_end_with_all(largest: int) -> None:
    found = sizes(largest)
    assert found == sorted(set(found))
    assert (found[-1:] or [0]) == [largest]
    for one, following in pairwise(found[:-1]):
        assert following == 2 * one
    if len(found) > 1:
        assert 4 / 3 < found[-1] / found[-2] < 3


def test_points_are_means_over_draws_of_nested_sets() -> None:
    whole = support(1, [12, 12, 10, 7, 1])
    fold = folds(whole.labels, seed=1)
    method = Watched()
    found = learning_curve(method, whole, None, fold)
    assert [point.shots for point in found.points] == [1, 2, 4, 10]
    parts = list(held_out(whole, fold))
    rows_of = {tuple(row.tolist()): i for i, row in enumerate(whole.features)}
    fits = iter(method.seen)
    nested: dict[int, set[int]] = {}
    for point in found.points:
        shares, counts = [], []
        for draw, (train, rows) in enumerate(parts):
            some = next(fits)
            assert some.counts.tolist() == train.counts.clamp(max=point.shots).tolist()
            mine = {rows_of[tuple(row.tolist())] for row in some.features}
            assert not mine & set(rows.tolist())
            assert nested.get(draw, set()) <= mine
            nested[draw] = mine
            logits = NearestMean().fit(some, None).logits(whole.features[rows])
            shares.append(float((logits.argmax(dim=1) == whole.labels[rows]).double().mean()))
            counts.append(len(some.labels))
        assert point.accuracy == pytest.approx(np.mean(shares))
        assert point.spread == pytest.approx(np.std(shares, ddof=1))
        assert point.images == pytest.approx(np.mean(counts))


def test_all_fits_together_learn_from_ten_times_the_images_at_most() -> None:
    for counts in ([64] * 5, [200, 50, 9, 2, 1], [30] * 5):
        whole = support(2, counts)
        method = Watched()
        learning_curve(method, whole, None, folds(whole.labels, n_folds=8, seed=1))
        assert sum(len(some.labels) for some in method.seen) <= 10 * len(whole.labels)


def test_the_curve_of_gaussians_rises_and_foretells_what_more_images_bring() -> None:
    features, labels = gaussians(99, [2000] * 5)

    def reached(n: int) -> float:
        """Mean accuracy from n images of each class."""
        found = []
        for seed in range(10):
            logits = NearestMean().fit(support(100 + seed, [n] * 5), None).logits(features)
            found.append(float((logits.argmax(dim=1) == labels).double().mean()))
        return float(np.mean(found))

    truth = {1: reached(40), 2: reached(80), 4: reached(160)}
    held = []
    for seed in range(6):
        whole = support(seed, [40] * 5)
        found = learning_curve(NearestMean(), whole, None, folds(whole.labels, seed=1))
        accuracies = [point.accuracy for point in found.points]
        assert all(b > a - 0.02 for a, b in pairwise(accuracies))
        for p in found.forecasts:
            held.append(p.interval[0] <= truth[p.times] <= p.interval[1])
            held.append(p.gain_interval[0] <= truth[p.times] - truth[1] <= p.gain_interval[1])
            assert p.accuracy == pytest.approx(truth[p.times], abs=0.08)
            assert p.interval[0] <= p.accuracy <= p.interval[1]
    assert np.mean(held) >= 0.8


def exact(a: float, b: float, c: float) -> Iterator[tuple[CurvePoint, list[float]]]:
    """Points and draws of an error that is a + b n^-c, hardly any spread."""
    for shots in (1, 2, 4, 8, 16):
        right = 1 - a - b * (10 * shots) ** -c
        yield CurvePoint(shots, 10 * shots, right, 0.0), [right - 1e-4, right, right + 1e-4]


def test_a_power_law_is_followed() -> None:
    a, b, c = 0.05, 1.0, 0.6
    points, shares = zip(*exact(a, b, c), strict=True)
    twice, four = forecasts(points, shares, present=200, n_judged=10**8)
    for found, n in ((twice, 400), (four, 800)):
        assert found.accuracy == pytest.approx(1 - a - b * n**-c, abs=0.002)
        gain = b * (200**-c - n**-c)
        assert found.gain == pytest.approx(gain, abs=0.002)
        low, high = found.gain_interval
        assert low - 1e-3 <= gain <= high + 1e-3
        assert high - low < 0.03  # two points alone bear many a curve


def by_scipy(images: list[float], errors: list[float], sigma: list[float], n: float) -> float:
    """The error at n images of the best curve through three points, its exponents one by one."""
    points, wide = np.array(images), np.array(sigma)
    residuals: dict[float, float] = {}
    for c in EXPONENTS:
        basis = np.stack([points**0, points**-c], axis=1) / wide[:, None]
        (a, b), residual = nnls(basis, np.array(errors) / wide)
        residuals[a + b * n**-c] = residual
    return min(residuals, key=lambda error: residuals[error])


@pytest.mark.parametrize(
    "errors", [(0.4, 0.3, 0.28), (0.4, 0.3, 0.1), (0.2, 0.3, 0.35), (0.3, 0.1, 0.2)]
)
def test_the_curve_is_that_of_non_negative_least_squares(errors: tuple[float, ...]) -> None:
    points = [CurvePoint(2**i, 10 * 2**i, 1 - e, 0.01 * 2**i) for i, e in enumerate(errors)]
    shares = [[p.accuracy - 0.01, p.accuracy + 0.01] for p in points]
    twice, four = forecasts(points, shares, present=50, n_judged=10**6)
    for found, n in ((twice, 100), (four, 200)):
        expected = by_scipy([10, 20, 40], list(errors), [0.01, 0.02, 0.04], n)
        assert found.accuracy == pytest.approx(1 - expected, abs=1e-9)


def test_a_falling_curve_promises_no_gain() -> None:
    points = [CurvePoint(k, 10 * k, 0.8 - 0.01 * i, 0.01) for i, k in enumerate((1, 2, 4, 8))]
    shares = [[p.accuracy - 0.01, p.accuracy + 0.01] for p in points]
    found = forecasts(points, shares, present=100, n_judged=100)
    assert found[0].gain == pytest.approx(0, abs=1e-9)
    assert LearningCurve(tuple(points), found).sentence == "no gain to be seen"


def test_the_sentence_says_what_twice_the_labels_bring() -> None:
    twice = Forecast(2, 0.9, (0.85, 0.95), 0.0123, (0.0034, 0.0206))
    curve = LearningCurve((), (twice, replace(twice, times=4, gain=0.5)))
    assert curve.sentence == "about +1.2 points (0.3 to 2.1) from twice as many labels"


def test_from_two_points_or_one_draw_nothing_is_foretold() -> None:
    for counts in ([2] * 5, [1] * 5):
        whole = support(3, counts)
        found = learning_curve(NearestMean(), whole, None, folds(whole.labels, seed=1))
        assert found.forecasts == ()
        assert found.sentence == "too few images to say"
    points, shares = zip(*exact(0.1, 1.0, 0.5), strict=True)
    assert forecasts(points, [share[:1] for share in shares], 100, 100) == ()


def test_sizes_that_the_method_cannot_be_fitted_to_are_left_out() -> None:
    whole = support(1, [12] * 5)
    found = learning_curve(Watched(least=5), whole, None, folds(whole.labels, seed=1))
    assert [point.shots for point in found.points] == [2, 4, 10]


def test_the_same_seed_draws_the_same_and_no_other_generator_is_touched() -> None:
    whole = support(1, [12] * 5)
    fold = folds(whole.labels, seed=1)
    before = torch.get_rng_state()
    one = learning_curve(NearestMean(), whole, None, fold, seed=3)
    assert one == learning_curve(NearestMean(), whole, None, fold, seed=3)
    assert one.points != learning_curve(NearestMean(), whole, None, fold, seed=4).points
    assert torch.equal(before, torch.get_rng_state())


def test_the_fits_show_their_progress(capsys: pytest.CaptureFixture[str]) -> None:
    support = SupportSet(torch.eye(8).repeat(4, 1), torch.arange(2).repeat_interleave(16), 2)
    learning_curve(NearestMean(), support, None, torch.arange(32) % 4)
    assert capsys.readouterr().err.startswith("learning curve ")
