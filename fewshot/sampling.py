"""Which images are the few shots: CoOp's sampling, row for row, and its base and new classes.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022,
https://arxiv.org/abs/2109.01134; base and new classes: "Conditional Prompt Learning for
Vision-Language Models", CVPR 2022, https://arxiv.org/abs/2203.05557.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.errors import UserError

Rows = NDArray[np.int64]
VAL_SHOTS = 4  # CoOp's few-shot validation split never has more per class


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows of one draw of few shots.

    Attributes:
        shots: K, images per class.
        seed: What drew them.
        train: (C * K,) rows of the train split, class after class.
        val: (C * min(K, 4),) rows of the val split; None where none were drawn.
    """

    shots: int
    seed: int
    train: Rows
    val: Rows | None = None


def draw(
    train_labels: ArrayLike,
    classnames: Sequence[str],
    *,
    shots: int,
    seed: int,
    val_labels: ArrayLike | None = None,
) -> Sample:
    """The rows that CoOp draws for these shots and this seed.

    One stream of random numbers serves the classes in the order in which each first appears in
    the train split, then those of the val split likewise. So the val rows depend on the train
    split, and the train rows are the same with and without val.

    Args:
        train_labels: (N,) class ids of the train split, in its published order.
        classnames: C names by class id.
        shots: K, at least 1.
        seed: Any integer; the literature's are 1, 2 and 3.
        val_labels: Class ids of the val split, to draw min(K, 4) of each class from it too.

    Raises:
        UserError: K is less than 1, or a class has too few images.
    """
    if shots < 1:
        raise UserError(f"shots must be 1 or more; got {shots}; zero-shot alone needs none")
    rng = random.Random(seed)
    train = _draw_split(rng, "train", train_labels, classnames, shots)
    if val_labels is None:
        return Sample(shots, seed, train)
    return Sample(
        shots, seed, train, _draw_split(rng, "val", val_labels, classnames, min(shots, VAL_SHOTS))
    )


def base_new(n_classes: int) -> tuple[range, range]:
    """The base classes, the first half of the ids and the middle one if any, and the new ones.

    A few-shot sample is drawn from all classes first and then cut down to either half.

    Raises:
        UserError: There are fewer than two classes.
    """
    if n_classes < 2:
        raise UserError(f"base and new classes need two classes or more; got {n_classes}")
    middle = (n_classes + 1) // 2
    return range(middle), range(middle, n_classes)


def restrict(labels: ArrayLike, classes: range) -> tuple[Rows, Rows]:
    """The (n,) positions whose label is one of a run of classes, and their labels from 0 on."""
    ids = np.asarray(labels, np.int64)
    rows = np.flatnonzero((ids >= classes.start) & (ids < classes.stop))
    return rows, ids[rows] - classes.start


def _draw_split(
    rng: random.Random, split: str, labels: ArrayLike, classnames: Sequence[str], shots: int
) -> Rows:
    """(C * shots,) rows, the classes in order of first appearance."""
    ids = np.asarray(labels, np.int64)
    require_shots(split, ids, classnames, shots, exactly=False)
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    groups = np.split(np.argsort(ids, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [groups[k][rng.sample(range(counts[k]), shots)] for k in np.argsort(first)]
    return np.concatenate(drawn)


def require_shots(
    split: str, labels: Rows, classnames: Sequence[str], shots: int, *, exactly: bool
) -> None:
    """Do nothing if every class has as many of the labels as the shots ask, or more.

    Args:
        split: What the labels are of, for the message.
        labels: (N,) class ids.
        classnames: C names by class id.
        shots: How many of each class there must be.
        exactly: Whether more are an error too.

    Raises:
        UserError: A class has too few, or too many; names the classes and their counts.
    """
    counts = np.bincount(labels, minlength=len(classnames))
    wrong = np.flatnonzero(counts != shots if exactly else counts < shots)
    if not len(wrong):
        return
    some = ", ".join(f"{classnames[k]!r} (class {k}) has {counts[k]}" for k in wrong[:3])
    more = f", and {len(wrong) - 3} classes more" if len(wrong) > 3 else ""
    least = counts.min()
    remedy = f"use at most {least} shots" if least and not exactly else f"check the {split} split"
    raise UserError(f"{shots} {split} images of every class are needed; {some}{more}; {remedy}")
