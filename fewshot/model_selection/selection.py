"""The method to use, and how good that choice may be expected to be.

Of many methods the best on some images is partly the luckiest on them, so its own accuracy there
promises too much. Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample
predictions for efficient and accurate cross-validation", Machine Learning 2018,
https://arxiv.org/abs/1708.07180 (BBC-CV): resample the judged images, choose by those drawn, score
the choice on those not drawn. Nothing is fitted again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError
from fewshot.metrics import per_class_accuracy, wilson
from fewshot.model_selection.calibration import expected_calibration_error, log_loss, temperature
from fewshot.model_selection.cross_validation import OutOfFold

RESAMPLES = 1000
CALIBRATING = 10_000  # images that a temperature is found on: one number needs no more
# Among which a resample finds its own: one found on all images would tell it of those not drawn,
# and of twelve coins right half of the time make one look right 53 % of the time.
TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-8, 9))
BLOCK = 2**22  # numbers of a block of resamples, or of logits
Array = NDArray[np.float64]


@dataclass(frozen=True)
class MethodScore:
    """Scores of one method on the held-out images; shares are in 0..1.

    Attributes:
        name: The method's.
        accuracy: Top-1.
        interval: Its 95 % interval, Wilson's, as if each group of near-duplicates were one image.
        balanced_accuracy: Mean over the classes of the accuracy within the class.
        temperature: T, under which softmax(logits / T) are its probabilities.
        log_loss: Mean -log p of the labels, at T.
        calibration_error: Expected calibration error at T.
        behind: The 95 % bootstrap interval of the winner's accuracy less this one's.
        chosen: Share of the resamples in which this method was chosen.
        seconds: Tuning and fitting it in all folds took.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    temperature: float
    log_loss: float
    calibration_error: float
    behind: tuple[float, float]
    chosen: float
    seconds: float


@dataclass(frozen=True)
class Selection:
    """The winner, and what choosing it promises.

    Attributes:
        winner: Its name.
        accuracy: What to expect of new images, corrected for having chosen: of a classifier that
            learned from one fold less than there is, so if anything too low.
        interval: The 95 % interval of that.
        scores: Of all methods, the best accuracy first.
        n_images: How many were judged.
        n_groups: The same, near-duplicates counted once.
    """

    winner: str
    accuracy: float
    interval: tuple[float, float]
    scores: tuple[MethodScore, ...]
    n_images: int
    n_groups: int

    def score_of(self, name: str) -> MethodScore | None:
        """Return the score of a method; None if it was not judged."""
        return next((score for score in self.scores if score.name == name), None)


def select(
    tried: Sequence[OutOfFold], labels: Tensor, *, groups: Tensor | None = None, seed: int = 1
) -> Selection:
    """Of the methods within one standard error of the best accuracy, that of lowest log-loss.

    The rule is `choosing.best`'s: accuracy decides as far as it can tell methods apart, and
    log-loss, at the best of `TEMPERATURES` for each method, the rest. Every resample
    chooses by that rule.

    The unit of chance is the group of near-duplicates. A resample scores its choice on those it
    did not draw, some 37 %, whose accuracy varies 1.3 times as much as that of all images; so
    BBC-CV's interval is rather too wide than too narrow. Yet it cannot see past what was seen: of
    twelve right ones it would promise that all are, always. So it is stretched to Wilson's.

    Args:
        tried: One method or more, all judged on the same images.
        labels: (N,) class ids.
        groups: (N,) near-duplicates; each image is its own group without it.
        seed: Of the resamples, and of the images that temperatures are found on.

    Raises:
        UserError: No method, or fewer than two groups of judged images.
    """
    if not tried:
        raise UserError("no method could be tried; see why each failed")
    rows, group = _units(tried[0], groups)
    truth = labels[rows]
    n_groups = int(group.max()) + 1 if len(group) else 0
    if n_groups < 2:
        raise UserError(
            f"methods are compared on images held out, and there are {n_groups} to hold out; "
            "label a second photo of some classes, and not a near-duplicate"
        )
    found = [_calibrated(one, rows, truth, seed) for one in tried]
    right, losses = _judged(tried, rows, truth)
    accuracy = right.mean(axis=0)
    winner = int(_choices(accuracy[None], losses.mean(axis=0)[None], n_groups)[0])
    drawn = bootstrap(right, losses, group.numpy(), seed)
    share = np.bincount(drawn.choices, minlength=len(tried)) / len(drawn.choices)
    scores = [
        MethodScore(
            name=one.name,
            accuracy=float(accuracy[m]),
            interval=wilson(float(accuracy[m]), n_groups),
            balanced_accuracy=per_class_accuracy(one.logits[rows].argmax(dim=1), truth),
            temperature=found[m][0],
            log_loss=found[m][1],
            calibration_error=found[m][2],
            behind=_interval(drawn.accuracies[:, winner] - drawn.accuracies[:, m]),
            chosen=float(share[m]),
            seconds=one.seconds,
        )
        for m, one in enumerate(tried)
    ]
    expected = float(drawn.scores.mean())
    ends = (_interval(drawn.scores), wilson(expected, n_groups))
    return Selection(
        winner=tried[winner].name,
        accuracy=expected,
        interval=(min(low for low, _ in ends), max(high for _, high in ends)),
        scores=tuple(sorted(scores, key=lambda score: -score.accuracy)),
        n_images=len(rows),
        n_groups=n_groups,
    )


def leading(
    tried: Sequence[OutOfFold], labels: Tensor, *, groups: Tensor | None = None
) -> OutOfFold:
    """Return the method that `select` would choose, all having judged the same images."""
    rows, group = _units(tried[0], groups)
    right, losses = _judged(tried, rows, labels[rows])
    n_groups = int(group.max()) + 1
    return tried[int(_choices(right.mean(axis=0)[None], losses.mean(axis=0)[None], n_groups)[0])]


def chances(
    tried: Sequence[OutOfFold], labels: Tensor, *, groups: Tensor | None = None, seed: int = 1
) -> list[float]:
    """Return each method's share of the resamples in which it is chosen among these.

    Args:
        tried: Methods, of which the images that the last has judged so far are compared.
        labels: (N,) class ids.
        groups: (N,) near-duplicates; each image is its own group without it.
        seed: Of the resamples.
    """
    rows, group = _units(tried[-1], groups)
    right, losses = _judged(tried, rows, labels[rows])
    choices = bootstrap(right, losses, group.numpy(), seed).choices
    times = np.bincount(choices, minlength=len(tried))
    return [float(n) for n in times / max(1, len(choices))]


@dataclass(frozen=True, eq=False)
class Resamples:
    """B resamples.

    Attributes:
        choices: (B,) the method chosen in each.
        scores: (B,) its accuracy on the images not drawn.
        accuracies: (B, R) every method's on the images drawn.
    """

    choices: NDArray[np.int64]
    scores: Array
    accuracies: Array


def bootstrap(right: Array, losses: Array, group: NDArray[np.int64], seed: int = 1) -> Resamples:
    """Groups drawn with replacement, a choice by those drawn, its score by the others.

    Resamples that draw all groups have no others and are left out.

    Args:
        right: (M, R) 1 where a method was right of an image, else 0.
        losses: (M, R, T) log-losses at `TEMPERATURES`.
        group: (M,) from 0 to G - 1.
        seed: Of the resamples.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    # Sums over groups are all that a resample needs.
    size = np.bincount(group).astype(float)
    right, flat = _sums(right, group, n_groups), _sums(losses, group, n_groups)
    parts = []
    for draws in np.array_split(np.arange(RESAMPLES), math.ceil(RESAMPLES * n_groups / BLOCK)):
        drawn = rng.integers(0, n_groups, (len(draws), n_groups))
        drawn += np.arange(len(draws))[:, None] * n_groups
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
        left = (times == 0).astype(float)
        times, left = times[left.any(axis=1)], left[left.any(axis=1)]
        n = (times @ size)[:, None]
        accuracies = times @ right / n
        loss = (times @ flat / n).reshape(*accuracies.shape, -1)
        choices = _choices(accuracies, loss, n_groups)
        scores = np.take_along_axis(left @ right, choices[:, None], 1)[:, 0] / (left @ size)
        parts.append((choices, scores, accuracies))
    return Resamples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _units(one: OutOfFold, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """(M,) rows of the images judged, and the group of each, numbered from 0."""
    rows = torch.nonzero(one.judged).flatten()
    return rows, torch.unique(rows if groups is None else groups[rows], return_inverse=True)[1]


def _judged(tried: Sequence[OutOfFold], rows: Tensor, truth: Tensor) -> tuple[Array, Array]:
    """(M, R) 1 where a method is right of an image, and (M, R, T) log-losses."""
    right = torch.stack([one.correct[rows] for one in tried], dim=1).double().numpy()
    return right, np.stack([log_losses(one.logits, rows, truth) for one in tried], axis=1)


def log_losses(logits: Tensor, rows: Tensor, truth: Tensor) -> Array:
    """(M, T) -log p of the labels at `TEMPERATURES`.

    Args:
        logits: (N, C).
        rows: (M,) which of them.
        truth: (M,) their labels.
    """
    losses = np.empty((len(rows), len(TEMPERATURES)))
    for block in torch.split(torch.arange(len(rows)), max(1, BLOCK // logits.shape[1])):
        some, labels = logits[rows[block]], truth[block]
        for i, t in enumerate(TEMPERATURES):
            losses[block, i] = cross_entropy(some / t, labels, reduction="none").numpy()
    return losses


def _choices(accuracy: Array, loss: Array, n: int) -> NDArray[np.int64]:
    """(B,) the method to use, of (B, R) accuracies and (B, R, T) log-losses on n images."""
    top = accuracy.max(axis=1, keepdims=True)
    close = accuracy >= top - np.sqrt(top * (1 - top) / n)
    return np.asarray(np.where(close, loss.min(axis=2), np.inf).argmin(axis=1), np.int64)


def _sums(values: Array, group: NDArray[np.int64], n_groups: int) -> Array:
    """(G, ...) sums over each group of (M, ...) values, all but the groups flattened."""
    flat = values.reshape(len(values), -1)
    sums = np.zeros((n_groups, flat.shape[1]))
    np.add.at(sums, group, flat)
    return sums


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _calibrated(
    tried: OutOfFold, rows: Tensor, truth: Tensor, seed: int
) -> tuple[float, float, float]:
    """Temperature, log-loss and calibration error under it, on some of the judged images."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(rows), generator=generator)[:CALIBRATING]
    logits, labels = tried.logits[rows[some]].double(), truth[some]
    t = temperature(logits, labels)
    error = expected_calibration_error(torch.softmax(logits / t, dim=1), labels)
    return t, log_loss(logits, labels, t), error
