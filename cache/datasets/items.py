"""The images of a split, also in columns: of these tens of millions fit into memory."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 512  # paths that are compressed together, to a tenth: they are alike


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


class Items(Sequence[Item]):
    """Items whose paths are compressed in blocks, and whose labels are an array.

    An item is made when it is asked for. In order that is fast; elsewhere it opens a block.

    Attributes:
        labels: (N,) class ids.
    """

    def __init__(
        self, blocks: Sequence[bytes], starts: NDArray[np.int64], labels: NDArray[np.int32]
    ) -> None:
        self._blocks, self._starts, self.labels = blocks, starts, labels
        self._open: tuple[int, list[str]] = (-1, [])  # the block that was asked for last

    @classmethod
    def of(cls, paths: Iterable[str], labels: ArrayLike) -> "Items":
        """The items of N paths and N labels."""
        remaining, blocks, starts, n = iter(paths), [], [], 0
        while some := list(islice(remaining, _BLOCK)):
            blocks.append(zlib.compress("\0".join(some).encode(errors="surrogatepass"), 1))
            starts.append(n)
            n += len(some)
        return cls(blocks, np.array(starts, np.int64), np.asarray(labels, np.int32))

    @classmethod
    def joined(cls, parts: Sequence["Items"]) -> "Items":
        """All items of several, one after another."""
        before = np.cumsum([0, *map(len, parts)])[:-1]
        starts = [part._starts + n for part, n in zip(parts, before, strict=True)]
        return cls(
            [block for part in parts for block in part._blocks],
            np.concatenate(starts) if starts else np.empty(0, np.int64),
            np.concatenate([part.labels for part in parts]) if parts else np.empty(0, np.int32),
        )

    def relabeled(self, labels: NDArray[np.int32]) -> "Items":
        """The same paths with other labels."""
        return Items(self._blocks, self._starts, labels)

    def chosen(self, rows: Iterable[int]) -> "Items":
        """The items at rows."""
        at = np.fromiter(rows, np.int64)
        return Items.of((self[int(row)].path for row in at), self.labels[at])

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Item]:
        return map(Item, self.paths(), map(int, self.labels))

    def paths(self) -> Iterator[str]:
        """The paths in order."""
        return (path for block in self._blocks for path in _opened(block))

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> "Items": ...
    def __getitem__(self, row: int | slice) -> "Item | Items":
        if isinstance(row, slice):
            return self.chosen(range(len(self))[row])
        row = range(len(self))[row]
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        held, paths = self._open
        if held != number:
            paths = _opened(self._blocks[number])
            self._open = number, paths
        return Item(paths[row - int(self._starts[number])], int(self.labels[row]))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list


class Paths(Sequence[str]):
    """The paths of items, each made when it is asked for."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return paths_of(self._items)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Paths": ...
    def __getitem__(self, row: int | slice) -> "str | Paths":
        if isinstance(row, slice):
            return Paths(self._items[row])
        return self._items[row].path


def labels_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """(N,) class ids of items."""
    if isinstance(items, Items):
        return items.labels.astype(np.int64)
    return np.fromiter((item.label for item in items), np.int64, len(items))


def paths_of(items: Sequence[Item]) -> Iterator[str]:
    """The paths of items in order, of which a few at a time are in memory."""
    return items.paths() if isinstance(items, Items) else (item.path for item in items)


def chosen_items(items: Sequence[Item], rows: Iterable[int]) -> Sequence[Item]:
    """The items at rows, in columns where they were."""
    return items.chosen(rows) if isinstance(items, Items) else tuple(items[row] for row in rows)


def _opened(block: bytes) -> list[str]:
    return zlib.decompress(block).decode(errors="surrogatepass").split("\0")
