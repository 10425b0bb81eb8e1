"""How accuracy grew with the labels there are, and what more of them might bring.

Error falls with the number of images about as a + b n^-c does; on predicting so from small training
sets: Hestness et al., "Deep Learning Scaling is Predictable, Empirically", 2017,
https://arxiv.org/abs/1712.00409; Viering and Loog, "The Shape of Learning Curves: a Review", 2021,
https://arxiv.org/abs/2103.10948, which also says how often it does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from cache.progress import progress
from fewshot.classifier import classify
from fewshot.method import Method
from fewshot.metrics import accuracy
from fewshot.model_selection.folds import turns
from fewshot.support import SupportSet
from fewshot.text import Text

MAX_DRAWS = 5
MAX_FITS = 10  # to all labels, that all fits together may cost
MIN_POINTS = 3  # as many as the curve has parameters; it goes through the last so many
MORE = (2, 4)  # times the present labels
REFITS = 200
WIDEST = 0.3  # interval of a forecast that is shown: wider than 30 points it says little
EXPONENTS = np.geomspace(0.05, 2, 40)  # candidates for c
ALIKE = 1e-18  # squares of standard errors by which fits differ in their rounding only
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy at one number of images.

    Attributes:
        shots: K, the images of a class, or all of a class that has fewer.
        images: Of the training set, mean over the draws.
        accuracy: On held-out images, mean over the draws, in 0..1.
        spread: Its standard deviation over the draws; 0 of a single one.
    """

    shots: int
    images: float
    accuracy: float
    spread: float


@dataclass(frozen=True)
class Forecast:
    """The gain that more labels may bring, by the curve.

    Attributes:
        times: How many times the present labels.
        accuracy: With so many, in 0..1.
        interval: Its 95 % interval.
        gain: Accuracy with so many less accuracy with the present ones, both the curve's.
        gain_interval: Its 95 % interval.
    """

    times: int
    accuracy: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]

    @property
    def width(self) -> float:
        """The width of the wider of both intervals."""
        return max(high - low for low, high in (self.interval, self.gain_interval))


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy against images, measured and predicted.

    Attributes:
        points: From one image per class to all that training parts have.
        forecasts: For `MORE` times the labels; none from fewer than `MIN_POINTS` points, or
            from one draw.
    """

    points: tuple[CurvePoint, ...]
    forecasts: tuple[Forecast, ...]

    @property
    def credible(self) -> tuple[Forecast, ...]:
        """The forecasts whose intervals are narrow enough to say something."""
        return tuple(one for one in self.forecasts if one.width <= WIDEST)

    @property
    def sentence(self) -> str:
        """The gain of twice as many labels in percentage points, in words."""
        if not self.forecasts:
            return "too few images to say"
        twice = self.forecasts[0]
        if twice not in self.credible:
            return "too uncertain to say"
        gain, low, high = (round(100 * x, 1) + 0.0 for x in (twice.gain, *twice.gain_interval))
        if not gain:
            return "no gain to be seen"
        return f"about {gain:+.1f} points ({low:.1f} to {high:.1f}) from twice as many labels"


def learning_curve(
    method: Method, support: SupportSet, text: Text | None, fold: Tensor, *, seed: int = 1
) -> LearningCurve:
    """Fit the method to more and more of the labels, its settings as they are.

    Each draw holds out another fold and puts every class of the rest in a random order, of which
    it takes the first 1, 2, 4, ... images and in the end all: so the sets of a draw are nested.
    There are as many draws as cost no more than `MAX_FITS` fits to all labels would, but two at
    least; where classes are of one size a draw costs two such fits. Sizes that the method cannot be
    fitted to are left out.

    Args:
        method: With its hyper-parameters as tuned.
        support: All labeled images.
        text: The classes' text or None.
        fold: (N,) by `folds`.
        seed: Of the orders.
    """
    draws: list[tuple[Tensor, Tensor, Tensor]] = []  # what trains, its turns, what is held out
    for k in range(int(fold.max()) + 1):
        others, rows = (torch.nonzero(where).flatten() for where in (fold != k, fold == k))
        if len(rows) and len(draws) < MAX_DRAWS:
            draws.append((others, turns(support.labels[others], seed + k), rows))
    largest = min((int(turn.max()) + 1 for _, turn, _ in draws), default=0)
    cost = sum(int((turn < shots).sum()) for _, turn, _ in draws[:1] for shots in sizes(largest))
    draws = draws[: max(2, MAX_FITS * len(support.labels) // max(1, cost))]
    points, found = [], []
    costs = [int((turn < shots).sum()) for shots in sizes(largest) for _, turn, _ in draws]
    with progress("learning curve", len(costs), costs=costs) as advance:
        for shots in sizes(largest):
            shares, counts = [], []
            try:
                for others, turn, rows in draws:
                    some = support.subset(others[turn < shots])
                    classifier = method.fit(some, text)
                    predicted = classify(classifier, support.features[rows])
                    shares.append(accuracy(predicted, support.labels[rows]))
                    counts.append(len(some.labels))
                    advance(1)
            except UserError:
                advance(len(draws) - len(shares))
                continue
            spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else 0.0
            points.append(CurvePoint(shots, float(np.mean(counts)), float(np.mean(shares)), spread))
            found.append(shares)
    n_judged = sum(len(rows) for _, _, rows in draws)
    return LearningCurve(
        tuple(points), forecasts(points, found, len(support.labels), n_judged, seed)
    )


def sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`, without a power of two that is nearly as large."""
    powers = [2**i for i in range(largest.bit_length()) if 2**i < 0.75 * largest]
    return [*powers, largest] if largest else []


def forecasts(
    points: Sequence[CurvePoint],
    shares: Sequence[Sequence[float]],
    present: int,
    n_judged: int,
    seed: int = 1,
) -> tuple[Forecast, ...]:
    """The accuracy that a curve through the last points gives for `MORE` times the labels.

    Through the last three, because no curve of this kind fits all of a method that starts from
    text: it hardly learns from the first image. Points weigh by their standard errors over the
    draws, of which none is taken for less than chance in the judged images would make it.

    The interval comes from refits to resampled draws, each from another of the points on, which
    shows how much depends on the shape. With GDA at 6 to 16 images per class of UCF101, DTD and
    WHU-RS19, 86 % of the intervals of gains held, to 0.3 points, what the images then brought:
    rather fewer than they should, the misses being gains larger than forecast.

    Args:
        points: P of them.
        shares: For each point the accuracy of each draw.
        present: Images that are labeled now.
        n_judged: Images held out over all draws.
        seed: Of the resampled draws.
    """
    if len(points) < MIN_POINTS or len(shares[0]) < 2:
        return ()
    images = np.array([point.images for point in points]) / present
    errors = 1 - np.array(shares)  # (P, draws)
    n_draws = errors.shape[1]
    rates = (errors.mean(axis=1) * n_judged + 1) / (n_judged + 2)
    chance = np.sqrt(rates * (1 - rates) / n_judged)
    sigma = np.maximum(chance, [point.spread / n_draws**0.5 for point in points])
    rng = np.random.default_rng(seed)
    times = np.array((1, *MORE))
    last = slice(-MIN_POINTS, None)
    best = 1 - _extrapolated(images[last], errors.mean(axis=1)[last], sigma[last], times)
    others = np.empty((REFITS, len(times)))
    for refit in others:
        drawn = errors[:, rng.integers(0, n_draws, n_draws)].mean(axis=1)
        kept = slice(rng.integers(0, len(points) - 1), None)
        refit[:] = 1 - _extrapolated(images[kept], drawn[kept], sigma[kept], times)
    gains, others_gain = best - best[0], others - others[:, :1]
    return tuple(
        Forecast(
            times=n,
            accuracy=float(best[i]),
            interval=_interval(best[i], others[:, i], n_draws, minimum=0.0),
            gain=float(gains[i]),
            gain_interval=_interval(gains[i], others_gain[:, i], n_draws, minimum=-1.0),
        )
        for i, n in enumerate(MORE, start=1)
    )


def _extrapolated(images: Array, errors: Array, sigma: Array, times: Array) -> Array:
    """The errors at `times` of the curve a + b n^-c through those at (P,) images, a, b >= 0.

    For each c of `EXPONENTS` the best a and b are a matter of non-negative least squares, so no
    search can go astray. Of two unknowns one may be zero, the other, or neither: the best of these
    is the answer. Of exponents that fit alike, as many do through two points, the smallest counts.
    """
    falling = images ** -EXPONENTS[:, None]  # (E, P)
    weights = sigma**-2
    n, x, xx = weights.sum(), falling @ weights, falling**2 @ weights
    y, xy = weights @ errors, falling @ (weights * errors)
    none, spread = np.zeros_like(x), n * xx - x * x
    a = np.stack([none + y / n, none, (xx * y - x * xy) / spread])  # (3, E)
    b = np.stack([none, xy / xx, (n * xy - x * y) / spread])
    off = (((a[..., None] + b[..., None] * falling - errors) / sigma) ** 2).sum(axis=-1)
    off[(a < 0) | (b < 0)] = np.inf
    e = int(np.argmax(off.min(axis=0) <= off.min() + ALIKE))
    best = off[:, e].argmin()
    return np.asarray(a[best, e] + b[best, e] * times ** -EXPONENTS[e], np.float64)


def _interval(value: float, resampled: Array, n_draws: int, minimum: float) -> tuple[float, float]:
    """95 % interval of a value from resamples of a few draws, which vary less than new ones would.

    By the root of n / (n - 1), and by Student's t in place of the normal distribution.
    """
    from scipy.special import stdtrit

    wider = stdtrit(n_draws - 1, 0.975) / 1.96 * (n_draws / (n_draws - 1)) ** 0.5
    low, high = value + wider * (np.quantile(resampled, (0.025, 0.975)) - value)
    return max(minimum, float(low)), min(1.0, float(high))
