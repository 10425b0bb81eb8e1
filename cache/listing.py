"""What a dataset's files say, whatever their layout: class names, and rows per split."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPLIT_RULE = "stratified 50/20/30"
_EXTENSIONS = {"jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm"}


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split.

    Attributes:
        path: Relative to the listing's root, with "/" between parts.
        label: Id of its class.
    """

    path: str
    label: int


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
    """

    root: Path
    classnames: tuple[str, ...]
    splits: Mapping[str, tuple[Item, ...]]
    origin: str
    notes: tuple[str, ...] = ()
    class_ids: tuple[int, ...] | None = None
    drawn: bool = False


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


class Images(NamedTuple):
    """The image files below a directory.

    Attributes:
        paths: Relative to the directory, with "/" between parts, sorted.
        ignored: How many other files there were, by what they are.
    """

    paths: tuple[str, ...]
    ignored: Counter[str]


def find_images(directory: Path) -> Images:
    """Every image file below a directory, links followed, hidden files and folders left out."""
    ignored: Counter[str] = Counter()
    paths = tuple(sorted(_walk(directory, "", frozenset(), ignored)))
    return Images(paths, ignored)


def folders(directory: Path) -> list[str]:
    """Names of the folders in a directory that are not hidden or among `lost_links`, sorted."""
    lost = lost_links(directory)
    with os.scandir(directory) as entries:
        found = [e.name for e in entries if _is_folder(e) and not _hidden(e.name)]
    return sorted(name for name in found if name not in lost)


def lost_links(directory: Path) -> list[str]:
    """Names of the links in a directory that lead nowhere, or back to where it lies, sorted."""
    here = os.path.realpath(directory)
    with os.scandir(directory) as entries:
        links = [Path(e.path) for e in entries if e.is_symlink() and not _hidden(e.name)]
    return sorted(x.name for x in links if not x.exists() or Path(here).is_relative_to(x.resolve()))


def _walk(
    directory: Path, prefix: str, above: frozenset[str], ignored: Counter[str]
) -> Iterator[str]:
    real = os.path.realpath(directory)
    if real in above:  # a link back to a folder that we are in
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            if _is_folder(entry):
                if not _hidden(entry.name):
                    below = _walk(
                        directory / entry.name, f"{prefix}{entry.name}/", above | {real}, ignored
                    )
                    yield from below
            elif _hidden(entry.name):
                ignored["hidden"] += 1
            elif entry.name.rpartition(".")[2].lower() in _EXTENSIONS:
                yield prefix + entry.name
            else:
                ignored["of another type"] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
