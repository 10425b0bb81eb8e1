"""The content of a dataset's files, whatever their layout: class names, and rows per split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.datasets.items import Item as Item
from cache.datasets.items import chosen_items, labels_of
from cache.datasets.reader import Reader

SPLIT_RULE = "stratified 50/20/30"


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
        drawn: True if nobody gave a split and this one is `stratified_split`'s.
        reader: What reads the images; None for files below `root`.
        templates: Prompts that lie beside the images.
        multi_label: True if an image may have several labels.
    """

    root: Path
    classnames: tuple[str, ...]
    splits: Mapping[str, Sequence[Item]]
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
    return {split: rows.tolist() for split, rows in _split_rows(np.asarray(labels)).items()}


def split_items(items: Sequence[Item]) -> dict[str, Sequence[Item]]:
    """The items under `stratified_split`."""
    rows = _split_rows(labels_of(items))
    return {split: chosen_items(items, at) for split, at in rows.items()}


def _split_rows(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    if not len(labels):
        return {}
    in_order = labels.argsort(kind="stable")
    ids, starts = np.unique(labels[in_order], return_index=True)
    for label, rows in zip(ids.tolist(), np.split(in_order, starts[1:]), strict=True):
        n = len(rows)
        n_val = max(1, n // 5) if n >= 3 else 0
        n_test = max(1, (3 * n + 5) // 10) if n >= 2 else 0
        ranked = rows[np.random.default_rng([1, label]).random(n).argsort()]
        val, test, train = np.split(ranked, [n_val, n_val + n_test])
        for split, some in (("train", train), ("val", val), ("test", test)):
            parts[split].append(some)
    joined = {split: np.sort(np.concatenate(some)) for split, some in parts.items() if some}
    return {split: rows for split, rows in joined.items() if len(rows)}
