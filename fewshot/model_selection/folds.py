"""Folds of a labeled set as it comes: classes of any size, near-duplicates never split.

`tuning.cross_validation` wants two images of every class. Here a class may have one: that image
then always trains and is never judged, and the other classes are judged all the same.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.support import SupportSet

ALWAYS_TRAINS = -1


def folds(
    labels: Tensor, *, groups: Tensor | None = None, n_folds: int = 5, seed: int = 1
) -> Tensor:
    """(N,) int64 fold of each image; -1 for one that always trains and is never held out.

    Each class is dealt out in random order, every image, with its whole group, to the fold that
    has fewest of the class, and of equals to the fold that has fewest images. A class that would
    leave no image to learn from, because all of it came to lie in one fold, keeps its first group
    for training: so a class of one image or of one group is never judged.

    Args:
        labels: (N,) class ids.
        groups: (N,) group ids; the images of a group stay together, whatever their labels. Each
            image is its own group without it.
        n_folds: How many; a class of fewer groups than that is in that many folds.
        seed: Of the order.

    Raises:
        UserError: Fewer than two folds.
    """
    if n_folds < 2:
        raise UserError(f"two folds are needed, one to learn from and one to judge; got {n_folds}")
    n, n_classes = len(labels), int(labels.max()) + 1 if len(labels) else 0
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]
    label, group = labels.tolist(), (torch.arange(n) if groups is None else groups).tolist()
    members: dict[int, list[int]] = {}
    for row in order.tolist():
        members.setdefault(group[row], []).append(row)

    of_class = [[0] * n_folds for _ in range(n_classes)]
    total = [0] * n_folds
    dealt: dict[int, int] = {}
    for name, rows in members.items():
        has = of_class[label[rows[0]]]
        fold = min(range(n_folds), key=lambda k: (has[k], total[k]))
        dealt[name] = fold
        total[fold] += len(rows)
        for row in rows:
            of_class[label[row]][fold] += 1

    groups_of: list[dict[int, None]] = [{} for _ in range(n_classes)]  # a set that keeps its order
    for row in order.tolist():
        groups_of[label[row]][group[row]] = None
    for names in groups_of:
        found = {dealt[name] for name in names}
        if len(found) == 1:
            dealt[next(iter(names))] = ALWAYS_TRAINS
    return torch.tensor([dealt[name] for name in group], dtype=torch.int64)


def held_out(support: SupportSet, fold: Tensor) -> Iterator[tuple[SupportSet, Tensor]]:
    """Each fold's training part, which has images of every class, and its (M,) held-out rows.

    Args:
        support: The images.
        fold: (N,) by `folds`.
    """
    for k in range(int(fold.max()) + 1):
        held = fold == k
        if held.any():
            yield support.subset(~held), torch.nonzero(held).flatten()
