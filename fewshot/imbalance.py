"""Few shots of unequal classes: a long tail, a step, or the train split as it is."""

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cache.errors import UserError, count
from fewshot.sampling import Sample, everything, shots_name


def draw_imbalanced(
    train_labels: ArrayLike,
    classnames: Sequence[str],
    *,
    profile: str,
    shots: int,
    seed: int,
) -> Sample:
    """Rows of a train split that is cut down to unequal classes.

    `long-tail:R`: the classes in an order drawn by the seed, class i of 0..C-1 has
    K R^(-i / (C - 1)) images, rounded: from K down to K / R, as Cao et al. cut CIFAR
    (https://arxiv.org/abs/1906.07413). `step:R`: half of the classes have K and the others K / R.
    `natural`: the whole train split as it is, whatever K.

    Args:
        train_labels: (N,) class ids of the train split, in its published order.
        classnames: C names by class id.
        profile: One of these three, with a number R of 1 or more.
        shots: K, images of the largest class.
        seed: Any integer.

    Returns:
        A sample whose `shots` are those of its largest class.

    Raises:
        UserError: Another profile, no shots, or a class with fewer images than its share.
    """
    kind, ratio = parse_profile(profile)
    if kind == "natural":
        return everything(train_labels, seed=seed)
    labels = np.asarray(train_labels, np.int64)
    if shots < 1:
        raise UserError(f"shots must be 1 or more; got {shots}; they are the largest class's")
    n_classes = len(classnames)
    position = np.arange(n_classes) / max(1, n_classes - 1)
    if kind == "step":
        position = (np.arange(n_classes) >= (n_classes + 1) // 2).astype(float)
    rng = random.Random(seed)
    order = rng.sample(range(n_classes), n_classes)
    counts = np.empty(n_classes, np.int64)
    counts[order] = np.maximum(1, np.rint(shots * ratio**-position))
    drawn = []
    for k, n in enumerate(counts.tolist()):
        rows = np.flatnonzero(labels == k)
        if len(rows) < n:
            raise UserError(
                f"{profile} from {shots_name(shots)} needs {count(n, 'train image')} of "
                f"{classnames[k]!r} (class {k}), which has {len(rows)}; use fewer shots"
            )
        drawn.append(rows[rng.sample(range(len(rows)), n)])
    return Sample(int(counts.max()), seed, np.concatenate(drawn))


def parse_profile(profile: str) -> tuple[str, float]:
    """The kind of a profile of unequal classes, and its ratio R.

    Raises:
        UserError: It is none of `draw_imbalanced`'s three.
    """
    kind, _, number = profile.partition(":")
    if profile == "natural":
        return "natural", 1.0
    try:
        ratio = float(number)
    except ValueError:
        ratio = 0.0
    if kind not in ("long-tail", "step") or not 1 <= ratio < math.inf:
        raise UserError(
            f"imbalance must be long-tail:R or step:R with R of 1 or more, or natural; "
            f"got {profile!r:.60}; long-tail:100 is the usual one"
        )
    return kind, ratio
