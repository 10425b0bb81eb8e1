"""Split conformal prediction: sets of classes and p-values that hold for whatever classifier.

What is promised holds on average over images that are exchangeable with those held out. Vovk,
Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005. The score of an image is the
probability of its class (LAC: Sadinle, Lei and Wasserman, https://arxiv.org/abs/1609.00451): of all
scores its sets are the smallest on average, and it needs one number of each held-out image and no
random draw, as adaptive sets (APS) do to be no larger than they must.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.errors import UserError, count

REFUSED = 0.05  # of known images, at most, by the open-set score
KEPT = 10_000  # held-out images whose probabilities are kept: more would change no threshold
COVERAGES = (0.8, 0.9, 0.95)

ByClass = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Coverage:
    """Prediction sets checked on images that made no threshold of theirs.

    Attributes:
        asked: The coverage asked for.
        found: Share of the images whose set holds the true class.
        size: Mean number of classes in a set.
        images: How many were checked.
    """

    asked: float
    found: float
    size: float
    images: int


def needed(coverage: float) -> int:
    """The minimum n with ceil((n + 1) coverage) <= n: fewer held-out images promise nothing."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def p_values(scores: Tensor, held_out: Sequence[float]) -> Tensor:
    """(M,) p-values of (M,) scores: the share of known images that score as low.

    Of known images at most a share a has a p-value of a or less.

    Args:
        scores: The higher, the likelier a known class.
        held_out: n scores of known images, in ascending order.
    """
    below = torch.searchsorted(torch.tensor(held_out, dtype=torch.float64), scores, right=True)
    return (below + 1) / (len(held_out) + 1)


def by_class(logits: Tensor, labels: Tensor, temperature: float) -> tuple[tuple[float, ...], ...]:
    """For each class the probabilities of it that its held-out images got, in ascending order.

    Of more than `KEPT` images those count that are drawn at random.

    Args:
        logits: (n, C) by classifiers that did not learn from the image.
        labels: (n,).
        temperature: T of softmax(logits / T).

    Returns:
        C rows; none where there are no images.
    """
    if not len(labels):
        return ()
    if len(labels) > KEPT:
        some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:KEPT]
        logits, labels = logits[some], labels[some]
    p = torch.softmax(logits.double() / temperature, dim=1).gather(1, labels[:, None])[:, 0]
    order = torch.argsort(p)
    found: list[list[float]] = [[] for _ in range(logits.shape[1])]
    for label, value in zip(labels[order].tolist(), p[order].tolist(), strict=True):
        found[label].append(value)
    return tuple(map(tuple, found))


def thresholds(held_out: ByClass, coverage: float) -> Tensor:
    """(C,) the probability from which each class is in a set.

    A class with enough held-out images has a threshold of its own, so that its own images are
    covered. The others share one, and the smallest of the first kind join them while their images
    are too few.

    Args:
        held_out: By `by_class`.
        coverage: The share of images whose set is to hold the true class.

    Raises:
        UserError: The coverage is not between 0 and 1, or there are too few held-out images.
    """
    require_coverage(coverage)
    n = needed(coverage)
    every = [p for of_class in held_out for p in of_class]
    if len(every) < n:
        raise UserError(
            f"coverage {coverage:g} takes {count(n, 'held-out image')}, and there "
            f"{'is' if len(every) == 1 else 'are'} {len(every)}; {_instead(len(every))}"
        )
    at = torch.zeros(len(held_out), dtype=torch.float64)
    together: list[int] = []
    shared: list[float] = []
    for k in sorted(range(len(held_out)), key=lambda k: len(held_out[k])):
        if len(held_out[k]) < n or (together and len(shared) < n):
            together.append(k)
            shared += held_out[k]
        else:
            at[k] = _threshold(held_out[k], coverage)
    if together:
        at[together] = _threshold(shared, coverage)
    return at


def _instead(n: int) -> str:
    if not n:
        return "fit again with two images or more of each class"
    return f"ask for {math.floor(100 * n / (n + 1)) / 100:g} or less, or fit with more images"


def _threshold(probabilities: Sequence[float], coverage: float) -> float:
    """The probability that all but the allowed share of new images reach."""
    rank = math.ceil((len(probabilities) + 1) * coverage - 1e-9)
    return sorted(probabilities, reverse=True)[rank - 1]


def require_coverage(coverage: float) -> None:
    """Raise unless sets can be asked for with this coverage.

    Raises:
        UserError: It is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise UserError(f"coverage must be above 0 and below 1, such as 0.9; got {coverage:g}")


def prediction_sets(probabilities: Tensor, at: Tensor) -> Tensor:
    """(M, C) bool of (M, C) probabilities: the classes in each set, the likeliest always.

    Args:
        probabilities: Calibrated as those of the held-out images were.
        at: (C,) by `thresholds`.
    """
    p = probabilities.double()
    return (p >= at).scatter(1, p.argmax(dim=1, keepdim=True), True)


def check_coverage(
    logits: Tensor, labels: Tensor, fold: Tensor, temperature: float, coverage: float
) -> Coverage | None:
    """Check prediction sets on each fold by thresholds of the other folds' images.

    Args:
        logits: (n, C) by classifiers that did not learn from the image.
        labels: (n,).
        fold: (n,).
        temperature: T of softmax(logits / T).
        coverage: As in `thresholds`.

    Returns:
        What was found; None where the other folds have too few images.
    """
    right, size = 0, 0
    for k in torch.unique(fold).tolist():
        here = fold == k
        others = by_class(logits[~here], labels[~here], temperature)
        if sum(map(len, others)) < needed(coverage):
            return None
        p = torch.softmax(logits[here].double() / temperature, dim=1)
        sets = prediction_sets(p, thresholds(others, coverage))
        right += int(sets.gather(1, labels[here][:, None]).sum())
        size += int(sets.sum())
    n = len(labels)
    return Coverage(coverage, right / n, size / n, n) if n else None
