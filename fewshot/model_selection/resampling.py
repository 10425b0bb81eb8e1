"""Resamples of judged images, and the method that would be chosen by each.

Every resample chooses as `selection.select` does: of the methods within one standard error of the
best accuracy, the one of lowest log-loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewshot.model_selection.cross_validation import OutOfFold

RESAMPLES = 1000
# Among which a resample finds its own: one found on all images would tell it of those not drawn,
# and of twelve coins right half of the time make one look right 53 % of the time.
TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-8, 9))
BLOCK = 2**22  # numbers of a block of resamples, or of logits
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """Images judged by R methods; the unit of chance is the group of near-duplicates.

    Attributes:
        rows: (M,) which images.
        right: (M, R) 1 where a method was right of an image, else 0.
        losses: (M, R, T) log-losses at `TEMPERATURES`.
        group: (M,) from 0 to G - 1.
    """

    rows: Tensor
    right: Array
    losses: Array
    group: NDArray[np.int64]

    @property
    def n_groups(self) -> int:
        """G."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def chosen(self) -> int:
        """The place of the method that these images choose."""
        accuracy, loss = self.right.mean(axis=0)[None], self.losses.mean(axis=0)[None]
        return int(_choices(accuracy, loss, self.n_groups)[0])


def judged(tried: Sequence[OutOfFold], labels: Tensor, groups: Tensor | None = None) -> Judged:
    """Gather what the methods made of the images that all of them have judged.

    Args:
        tried: One method or more.
        labels: (N,) class ids.
        groups: (N,) near-duplicates; each image is its own group without it.
    """
    rows = torch.nonzero(torch.stack([one.judged for one in tried]).all(dim=0)).flatten()
    group = torch.unique(rows if groups is None else groups[rows], return_inverse=True)[1]
    right = torch.stack([one.correct[rows] for one in tried], dim=1).double().numpy()
    losses = np.stack([log_losses(one.logits, rows, labels[rows]) for one in tried], axis=1)
    return Judged(rows, right, losses, group.numpy())


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
