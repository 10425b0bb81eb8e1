"""Which images are the few shots where an image may have several labels, and their folds."""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from fewshot.model_selection.folds import ALWAYS_TRAINS
from fewshot.sampling import Sample, require_shots

FOLDS = 5


def draw_positives(
    label_sets: NDArray[np.bool_],
    classnames: Sequence[str],
    *,
    shots: int | Literal["all"],
    seed: int,
) -> Sample:
    """Draw images until every class has K of them.

    The classes take turns, the rarest of the train split first. Each draws at random among its
    images that are not drawn yet, until it has K, those that other classes drew included. So a
    class that comes with others may end with more than K.

    Args:
        label_sets: (N, C) True for each class of each train image.
        classnames: C names.
        shots: K, at least 1; or all images.
        seed: Random seed for the draw.

    Raises:
        UserError: No shots, or a class with fewer than K images.
    """
    counts = label_sets.sum(axis=0)
    if shots == "all":
        return Sample(int(counts.max()), seed, np.arange(len(label_sets)))
    if shots < 1:
        raise UserError(f"shots must be 1 or more; got {shots}; zero-shot needs none")
    require_shots("train", counts, classnames, shots, exactly=False)
    rng = random.Random(seed)
    drawn = np.zeros(len(label_sets), bool)
    rows: list[int] = []
    for k in np.argsort(counts, kind="stable"):
        free = np.flatnonzero(label_sets[:, k] & ~drawn).tolist()
        missing = shots - int(label_sets[drawn, k].sum())
        chosen = rng.sample(free, max(0, missing))
        drawn[chosen] = True
        rows += chosen
    return Sample(shots, seed, np.array(rows, np.int64))


def positive_folds(label_sets: Tensor, *, n_folds: int = FOLDS, seed: int = 1) -> Tensor:
    """Assign each image to a fold, so that each class is spread over the folds.

    The classes take turns, the rarest first. Each deals its images that are not dealt yet to the
    fold that has the fewest images of the class, of equals to the one with the fewest of all:
    Sechidis et al., "On the Stratification of Multi-Label Data", ECML 2011. An image without which
    the other folds would have none of a class, or none that is not of it, always trains.

    Args:
        label_sets: (N, C) bool.
        n_folds: Number of folds.
        seed: Random seed for the order within each class.

    Returns:
        (N,) int64 fold of each image, from 0; `ALWAYS_TRAINS` for one that is never held out.
    """
    sets = label_sets.numpy()
    order = np.random.default_rng(seed).permutation(len(sets))
    fold = np.full(len(sets), n_folds)  # not dealt yet
    of_class, total = np.zeros((sets.shape[1], n_folds), int), np.zeros(n_folds, int)
    for k in np.argsort(sets.sum(axis=0), kind="stable"):
        for row in order[sets[order, k]]:
            if fold[row] == n_folds:
                at = np.lexsort((total, of_class[k]))[0]
                fold[row] = at
                of_class[sets[row], at] += 1
                total[at] += 1
    for row in order[fold[order] == n_folds]:  # of no class
        fold[row] = total.argmin()
        total[fold[row]] += 1
    for column in (*sets.T, *~sets.T):
        if len(set(fold[column])) == 1:
            fold[np.flatnonzero(column)[0]] = ALWAYS_TRAINS
    return torch.from_numpy(fold)
