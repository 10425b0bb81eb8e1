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

from cache.errors import UserError, count

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
    val_first: bool = False,
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
        val_first: Draw these before the train rows, as CLIP-LoRA's code does; other images result.
            Without a val split draw min(K, 4) more of each class's train images along with its K,
            and leave these out, as that code does for ImageNet.

    Raises:
        UserError: K is less than 1, or a class has too few images.
    """
    if shots < 1:
        raise UserError(f"shots must be 1 or more; got {shots}; zero-shot needs none")
    rng = random.Random(seed)
    val = None
    if val_first and val_labels is None:
        return Sample(shots, seed, _draw_beside_val(rng, train_labels, classnames, shots))
    if val_first and val_labels is not None:
        val = _draw_split(rng, "val", val_labels, classnames, min(shots, VAL_SHOTS))
    train = _draw_split(rng, "train", train_labels, classnames, shots)
    if not val_first and val_labels is not None:
        val = _draw_split(rng, "val", val_labels, classnames, min(shots, VAL_SHOTS))
    return Sample(shots, seed, train, val)


def everything(train_labels: ArrayLike, *, seed: int) -> Sample:
    """All rows of a train split, as a sample whose `shots` are those of its largest class.

    Args:
        train_labels: (N,) class ids of the train split; a class may have none.
        seed: The seed that the sample is to have; nothing is drawn.
    """
    labels = np.asarray(train_labels, np.int64)
    return Sample(int(np.bincount(labels).max(initial=0)), seed, np.arange(len(labels)))


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


def halves(train_labels: ArrayLike, n_classes: int) -> tuple[range, range]:
    """The base classes and the new ones of a train split.

    Where the last classes have no train image, as in a split made for zero-shot learning, these are
    the new ones; else the halves are those of `base_new`.
    """
    seen = int(np.asarray(train_labels, np.int64).max(initial=-1)) + 1
    return (range(seen), range(seen, n_classes)) if 0 < seen < n_classes else base_new(n_classes)


def restrict(labels: ArrayLike, classes: Sequence[int]) -> tuple[Rows, Rows]:
    """The (n,) positions whose label is one of some classes, and their labels from 0 on.

    Args:
        labels: Class ids.
        classes: Ids in ascending order; they become 0, 1, …
    """
    ids, chosen = np.asarray(labels, np.int64), np.asarray(classes, np.int64)
    rows = np.flatnonzero(np.isin(ids, chosen))
    return rows, np.searchsorted(chosen, ids[rows])


def _draw_split(
    rng: random.Random, split: str, labels: ArrayLike, classnames: Sequence[str], shots: int
) -> Rows:
    """(C * shots,) rows, the classes in order of first appearance."""
    ids = np.asarray(labels, np.int64)
    sizes = np.bincount(ids, minlength=len(classnames))
    require_shots(split, sizes, classnames, shots, exactly=False)
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    groups = np.split(np.argsort(ids, kind="stable"), np.cumsum(counts)[:-1])
    drawn = [groups[k][rng.sample(range(counts[k]), shots)] for k in np.argsort(first)]
    return np.concatenate(drawn)


def _draw_beside_val(
    rng: random.Random, labels: ArrayLike, classnames: Sequence[str], shots: int
) -> Rows:
    """(C * shots,) rows, drawn along with images to validate on, which come after each class's."""
    aside = min(shots, VAL_SHOTS)
    fewest = int(np.bincount(np.asarray(labels, np.int64), minlength=len(classnames)).min())
    if fewest < shots + aside:
        raise UserError(
            f"the authors' draw takes {aside} more train images of every class to validate on, "
            f"since there is no val split: {shots + aside} in all; a class has {fewest}; use fewer "
            "shots"
        )
    both = _draw_split(rng, "train", labels, classnames, shots + aside)
    return both.reshape(-1, shots + aside)[:, :shots].ravel()


def support_rows(
    train_labels: ArrayLike,
    classnames: Sequence[str],
    *,
    shots: Sequence[int],
    seeds: Sequence[int],
) -> Rows:
    """Return the sorted train rows that any of several draws contains.

    Args:
        train_labels: (N,) class ids.
        classnames: C names by class id.
        shots: K of each draw.
        seeds: Random seeds; every one is used with every K.

    Raises:
        UserError: A class has too few images.
    """
    drawn = [
        draw(train_labels, classnames, shots=k, seed=seed).train for k in shots for seed in seeds
    ]
    return np.unique(np.concatenate(drawn))


def require_shots(
    split: str, counts: Rows, classnames: Sequence[str], shots: int, *, exactly: bool
) -> None:
    """Raise unless every class has as many images as the shots ask, or more.

    Args:
        split: What the images are of, for the message.
        counts: (C,) images of each class.
        classnames: C names by class id.
        shots: How many of each class there must be.
        exactly: Refuse more, too.

    Raises:
        UserError: A class has too few, or too many; names the classes and their counts.
    """
    wrong = np.flatnonzero(counts != shots if exactly else counts < shots)
    if not len(wrong):
        return
    some = ", ".join(f"{classnames[k]!r} (class {k}) has {counts[k]}" for k in wrong[:3])
    more = f", and {count(len(wrong) - 3, 'class', 'classes')} more" if len(wrong) > 3 else ""
    least = counts.min()
    at_most = shots_name(int(least))
    remedy = f"use at most {at_most}" if least and not exactly else f"check the {split} split"
    needed = count(shots, f"{split} image of every class is", f"{split} images of every class are")
    raise UserError(f"{needed} needed; {some}{more}; {remedy}")


def shots_name(shots: int) -> str:
    """Return the number of shots in words, such as "1 shot"."""
    return count(shots, "shot") if shots else "no shots"
