"""The arrays of a store in parts, read as those of a store in one file are."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.arrays.contents import Contents
from cache.arrays.hdf5 import Place
from cache.arrays.parts import LISTING, listed, open_listed
from cache.arrays.store_format import SPLITS, is_image_matrix
from cache.datasets.addresses import CONNECTIONS, is_remote
from cache.errors import UserError


@dataclass(frozen=True)
class PartedContents(Contents):
    """The arrays of a store's file and of its parts; `address` and `stamp` are the file's.

    Attributes:
        head: The arrays in the store's file.
        parts: Split -> the arrays of each of its parts, in the order of the images.
    """

    head: Contents
    parts: Mapping[str, tuple[Contents, ...]]

    @property
    def files(self) -> tuple[Contents, ...]:
        """The contents of each file, the store's own first."""
        return (self.head, *itertools.chain.from_iterable(self.parts.values()))

    def array(self, name: str) -> NDArray[Any]:
        """The whole array, its bytes compared with their digests."""
        if not is_image_matrix(name):
            return self.head.array(name)
        return np.concatenate([part.array(name) for part in self._of(name)], axis=_axis(name))

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """Pieces of (n, D) of a matrix, those of a part after another's; not compared."""
        return itertools.chain.from_iterable(part.blocks(name) for part in self._of(name))

    def ascending_rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n, D) rows of a (..., D) matrix as they lie in the parts, for n ascending rows."""
        parts, n = self._of(name), self.places[name].shape[-2]
        sizes = [part.places[name].shape[-2] for part in parts]
        ends = np.cumsum(sizes)
        view, image = np.divmod(rows, n)
        of_part = np.searchsorted(ends, image, side="right")
        block = np.empty((len(rows), self.places[name].shape[-1]), self.places[name].dtype)

        def fill(number: int) -> None:
            mine = np.flatnonzero(of_part == number)
            local = view[mine] * sizes[number] + image[mine] - (ends[number] - sizes[number])
            block[mine] = parts[number].ascending_rows(name, local)

        _for_each(self.address, fill, np.unique(of_part).tolist())
        return block

    def is_unchanged(self, name: str) -> bool:
        """True if the array's bytes are the ones that were written."""
        if not is_image_matrix(name):
            return self.head.is_unchanged(name)
        return all(part.is_unchanged(name) for part in self._of(name))

    def _of(self, name: str) -> tuple[Contents, ...]:
        """The parts that an array is in."""
        return self.parts[name.partition("/")[0]]


def with_parts(head: Contents) -> PartedContents:
    """The arrays of a store's file and of all parts that it lists, whose headers alone are read.

    Raises:
        UserError: A part is missing, damaged, or another than the one that is listed.
    """
    parts = {}
    for split, some in listed(head).items():
        opened = functools.partial(open_listed, head.address)
        parts[split] = tuple(_for_each(head.address, opened, some))
    found = {name: place for name, place in head.places.items() if name != LISTING}
    for split, files in parts.items():
        for name in files[0].places if files else ():
            if split not in SPLITS or name in found or not is_image_matrix(name):
                raise UserError(
                    f"{head.address} is damaged: /{name} is in two places; make it again"
                )
            found[name] = _joined(head.address, name, files)
    return PartedContents(head.address, head.stamp, found, head, parts)


def _joined(store: str, name: str, parts: tuple[Contents, ...]) -> Place:
    """The shape of an array of several parts; it has no place of its own."""
    axis, first = _axis(name), parts[0].places[name]
    others = {(*s[:axis], *s[axis + 1 :]) for s in (_shape(part, name) for part in parts)}
    if len(others) != 1 or any(part.places.keys() != parts[0].places.keys() for part in parts):
        raise UserError(f"{store} is damaged: its parts differ in /{name}; make it again")
    shape = list(first.shape)
    shape[axis] = sum(part.places[name].shape[axis] for part in parts)
    return Place(0, tuple(shape), first.dtype, "")


def _shape(part: Contents, name: str) -> tuple[int, ...]:
    return part.places[name].shape if name in part.places else ()


def _axis(name: str) -> int:
    """The axis of a matrix that is of images: views come first."""
    return int("view" in name.rpartition("/")[2])


def _for_each(address: str, work: Any, items: list[Any]) -> list[Any]:
    """The results of a function, many at a time where each waits for a network."""
    if not is_remote(address):
        return list(map(work, items))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(work, items))
