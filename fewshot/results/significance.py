"""Test if two classifiers differ by more than chance on the same test images.

McNemar's exact test, "Note on the sampling error of the difference between correlated proportions
or percentages", Psychometrika 1947; its mid-p: Fagerland et al., "The McNemar test for binary
matched-pairs data", 2013, https://doi.org/10.1186/1471-2288-13-91; intervals: the percentile
bootstrap.

Chance is in which images were tested. The few shots and what was trained on them are taken as they
are; how much they matter, the spread over seeds shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from cache.errors import UserError
from fewshot.metrics import per_class_accuracy
from fewshot.results.prediction_files import Predictions

RESAMPLES = 100_000
PairedPredictions = tuple[Predictions, Predictions]


@dataclass(frozen=True)
class Comparison:
    """Counts of what A and B, a pair or several, got right of the same images; shares in 0..1.

    Attributes:
        n_pairs: Pairs of predictions.
        n_images: Distinct test images.
        accuracy_a: Mean over the pairs of A's accuracy.
        accuracy_b: Of B's.
        interval: The 95 % interval of the difference, A less B.
        only_a: Times that A alone was right, over all pairs.
        only_b: Times that B alone was.
        p: Two-sided probability of a difference as great or greater if there were none.
        mid_p: The same counting only half of the probability of one just as great, which of a
            single pair is less conservative; None of several.
        per_class_a: Mean over the pairs of A's mean per-class accuracy.
        per_class_b: Of B's.
    """

    n_pairs: int
    n_images: int
    accuracy_a: float
    accuracy_b: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p: float
    mid_p: float | None
    per_class_a: float
    per_class_b: float

    @property
    def difference(self) -> float:
        """A's accuracy less B's."""
        return self.accuracy_a - self.accuracy_b


@dataclass(frozen=True, eq=False)
class _Images:
    """The images of one test set by how often A was right less how often B was, over S pairs.

    Attributes:
        pairs: S.
        values: (2S + 1,) from -S to S.
        counts: (2S + 1,) images of each.
    """

    pairs: int
    values: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def compare(pairs: Sequence[PairedPredictions], seed: int = 1) -> Comparison:
    """A against B on the images of every pair, each pair counting the same.

    The unit of chance is the image. One that several pairs share, as the seeds of one dataset do,
    is drawn again or left out with all it got in all of them, and whoever was right of it changes
    sides in all of them at once: so three seeds do not pass for three times the images. Images of
    different test sets are independent.

    One pair is tested by McNemar's exact test. That is a sign test on the images that one alone
    got right, and for several pairs the same is done with signs drawn at random `RESAMPLES` times,
    which yields no p below 1e-5. The bootstrap draws the counts of a resample rather than its
    images, which is the same in distribution.

    Args:
        pairs: A's and B's predictions, one pair or more.
        seed: Of those random numbers.

    Raises:
        UserError: The two of a pair are of different test images.
    """
    sets = _by_images(pairs)
    weights = [1 / (len(pairs) * images.total) for images in sets]
    rng = np.random.default_rng(seed)
    drawn = np.zeros(RESAMPLES)
    for images, weight in zip(sets, weights, strict=True):
        resamples = rng.multinomial(images.total, images.counts / images.total, RESAMPLES)
        drawn += weight * (resamples @ images.values)
    low, high = np.quantile(drawn, (0.025, 0.975))
    right = [tuple(p.predicted == p.labels for p in pair) for pair in pairs]
    only_a, only_b = (
        int(sum((one & ~other).sum() for one, other in pairs_right))
        for pairs_right in (right, [(b, a) for a, b in right])
    )
    p, mid_p = mcnemar(only_a, only_b) if len(pairs) == 1 else (_by_signs(sets, weights, rng), None)
    return Comparison(
        n_pairs=len(pairs),
        n_images=sum(images.total for images in sets),
        accuracy_a=float(np.mean([a.mean() for a, _ in right])),
        accuracy_b=float(np.mean([b.mean() for _, b in right])),
        interval=(float(low), float(high)),
        only_a=only_a,
        only_b=only_b,
        p=p,
        mid_p=mid_p,
        per_class_a=float(np.mean([per_class_accuracy(a.predicted, a.labels) for a, _ in pairs])),
        per_class_b=float(np.mean([per_class_accuracy(b.predicted, b.labels) for _, b in pairs])),
    )


def mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """Exact two-sided p, and mid-p, of counts of images that one alone got right."""
    n = only_a + only_b
    if n == 0:
        return 1.0, 1.0
    fewer = min(only_a, only_b)
    as_few = float(bdtr(fewer, n, 0.5))
    still_fewer = float(bdtr(fewer - 1, n, 0.5)) if fewer else 0.0
    return min(1.0, 2 * as_few), as_few + still_fewer


def _by_images(pairs: Sequence[PairedPredictions]) -> list[_Images]:
    """The test sets, each with the differences of all pairs on it."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for a, b in pairs:
        if a.images != b.images or not np.array_equal(a.labels, b.labels):
            raise UserError(
                f"different test images, {len(a.labels)} and {len(b.labels)} of them, cannot be "
                "compared image by image; compare predictions on the same test split and classes"
            )
        right = (a.predicted == a.labels).astype(np.int64) - (b.predicted == b.labels)
        found.setdefault(a.images, []).append(right)
    sets = []
    for differences in found.values():
        s = len(differences)
        sums = np.sum(differences, axis=0)
        sets.append(_Images(s, np.arange(-s, s + 1), np.bincount(sums + s, minlength=2 * s + 1)))
    return sets


def _by_signs(sets: Sequence[_Images], weights: Sequence[float], rng: np.random.Generator) -> float:
    """The p of the sign test, of images that weigh what their differences sum to."""
    observed, drawn = 0.0, np.zeros(RESAMPLES)
    for images, weight in zip(sets, weights, strict=True):
        observed += weight * float(images.counts @ images.values)
        for value in range(1, images.pairs + 1):
            n = int(images.counts[np.abs(images.values) == value].sum())
            drawn += weight * value * (2 * rng.binomial(n, 0.5, RESAMPLES) - n)
    as_great = np.abs(drawn) >= abs(observed) - 1e-12
    return float((1 + as_great.sum()) / (1 + RESAMPLES))
