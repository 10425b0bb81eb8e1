"""Folds of a labeled set: stratified, near-duplicates never split, classes of any size."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.support import SupportSet

ALWAYS_TRAINS = -1


def folds(
    labels: Tensor, *, groups: Tensor | None = None, n_folds: int = 5, seed: int | None = None
) -> Tensor:
    """Assign each image to a fold.

    Each class is dealt out image by image. An image goes, with its whole group, to the fold that
    has the fewest images of the class. Several folds may have equally few: with a seed the one
    that has the fewest images of all classes takes it, without a seed the first.

    A class that lies in one fold would leave no image to learn from, so its first group always
    trains. A class of one image or of one group is therefore never held out.

    Args:
        labels: (N,) class ids.
        groups: (N,) group ids. A group stays together, whatever its labels. Without it each image
            is its own group.
        n_folds: Number of folds; a class of fewer groups is in as many folds as it has groups.
        seed: Random seed for the order within each class; None deals in the given order.

    Returns:
        (N,) int64 fold of each image, from 0; `ALWAYS_TRAINS` for one that is never held out.

    Raises:
        UserError: Fewer than two folds.
    """
    if n_folds < 2:
        raise UserError(f"two folds are needed, one to learn from and one to judge; got {n_folds}")
    if groups is None:
        return _deal_images(labels.cpu(), n_folds, seed)
    return _deal_groups(labels.cpu(), groups, n_folds, seed)


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


def turns(labels: Tensor, seed: int | None = None) -> Tensor:
    """(N,) place of each image in the order of its class, from 0.

    Args:
        labels: (N,) class ids.
        seed: Random seed for the order; None for the given order.
    """
    order = _by_class(labels, seed)
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts  # where each class begins in that order
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(labels)) - first[labels[order]]
    return turn


def _by_class(labels: Tensor, seed: int | None) -> Tensor:
    """(N,) rows of class 0, 1, ..., within a class in random order or, without a seed, as given."""
    order = torch.arange(len(labels))
    if seed is not None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return order[torch.argsort(labels[order], stable=True)]


def _deal_images(labels: Tensor, n_folds: int, seed: int | None) -> Tensor:
    """Give what `_deal_groups` gives for groups of one image, without a loop over images.

    Between two images of a class in one fold every other fold gets one, so the folds take turns.
    """
    counts = torch.bincount(labels)
    sequence = torch.arange(n_folds).repeat(len(counts), 1)  # (C, n_folds) in which they take turns
    total = torch.zeros(n_folds, dtype=torch.int64)
    for label, count in enumerate([] if seed is None else counts.tolist()):
        sequence[label] = torch.argsort(total, stable=True)
        extra = (torch.arange(n_folds) < count % n_folds).long()
        total[sequence[label]] += count // n_folds + extra
    fold = sequence[labels, turns(labels, seed) % n_folds]
    fold[counts[labels] == 1] = ALWAYS_TRAINS
    return fold


def _deal_groups(labels: Tensor, groups: Tensor, n_folds: int, seed: int | None) -> Tensor:
    n_classes = int(labels.max()) + 1 if len(labels) else 0
    label, group = labels.tolist(), groups.tolist()
    members: dict[int, list[int]] = {}
    groups_of: list[dict[int, None]] = [{} for _ in range(n_classes)]  # a set that keeps its order
    for row in _by_class(labels, seed).tolist():
        members.setdefault(group[row], []).append(row)
        groups_of[label[row]][group[row]] = None

    of_class = [[0] * n_folds for _ in range(n_classes)]
    total = [0] * n_folds
    dealt: dict[int, int] = {}
    for name, rows in members.items():
        has = of_class[label[rows[0]]]
        fold = min(range(n_folds), key=lambda k: (has[k], k if seed is None else total[k]))
        dealt[name] = fold
        total[fold] += len(rows)
        for row in rows:
            of_class[label[row]][fold] += 1
    for names in groups_of:
        if len({dealt[name] for name in names}) == 1:
            dealt[next(iter(names))] = ALWAYS_TRAINS
    return torch.tensor([dealt[name] for name in group], dtype=torch.int64)
