"""The content of a dataset's files, whatever their layout: class names, and rows per split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.reader import Reader

SPLIT_RULE = "stratified 50/20/30"


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split.

    Attributes:
        path: Relative to the listing's root, with "/" between parts.
        label: Id of its class; of several, the one that the fewest images have.
        more: Ids of its other classes, ascending.
    """

    path: str
    label: int
    more: tuple[int, ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        """Ids of all its classes."""
        return (self.label, *self.more)


@dataclass(frozen=True)
class Listing:
    """The rows of a dataset as found on disk.

    Attributes:
        root: What the items' paths are relative to.
        classnames: By class id.
        splits: "train", "val" and "test", those that exist, each in its published order.
        origin: Where the split came from, in words.
        notes: What a reader should know about how it was found, one line each.
        class_ids: ImageNet's id of each class, where the classes are ImageNet's.
        drawn: Whether nobody gave a split and this one is `stratified_split`'s.
        reader: What reads the images; None for files below `root`.
        templates: Prompts that lie beside the images.
        multi_label: Whether an image may have several labels.
    """

    root: Path
    classnames: tuple[str, ...]
    splits: Mapping[str, tuple[Item, ...]]
    origin: str
    notes: tuple[str, ...] = ()
    class_ids: tuple[int, ...] | None = None
    drawn: bool = False
    reader: Reader | None = None
    templates: tuple[str, ...] = ()
    multi_label: bool = False


def stratified_split(labels: Sequence[int]) -> dict[str, list[int]]:
    """Row numbers of a train, a val and a test split, about 50, 20 and 30 % of every class.

    Where nobody has published a split, this one is always the same: within a class, rows are
    ranked by draws from NumPy's `default_rng([1, class id])`, so that no class depends on the
    others. Of n >= 3 images, max(1, n // 5) are for val, max(1, (3 n + 5) // 10) for test and the
    rest for train; of two, one for train and one for test; a single one is for train.

    Args:
        labels: Class id of every row.

    Returns:
        The row numbers of each split, ascending; a split without rows is left out.
    """
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)
    for label, rows in by_class.items():
        n = len(rows)
        n_val = max(1, n // 5) if n >= 3 else 0
        n_test = max(1, (3 * n + 5) // 10) if n >= 2 else 0
        ranked = [rows[i] for i in np.random.default_rng([1, label]).random(n).argsort()]
        splits["val"] += ranked[:n_val]
        splits["test"] += ranked[n_val : n_val + n_test]
        splits["train"] += ranked[n_val + n_test :]
    return {split: sorted(rows) for split, rows in splits.items() if rows}


def split_items(items: Sequence[Item]) -> dict[str, tuple[Item, ...]]:
    """The items under `stratified_split`."""
    rows = stratified_split([item.label for item in items])
    return {split: tuple(items[row] for row in chosen) for split, chosen in rows.items()}
