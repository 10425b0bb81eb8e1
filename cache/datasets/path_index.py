"""A table from paths to numbers, small enough for tens of millions of them."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError, count


class PathIndex:
    """Some numbers for each of many paths, in 8 bytes a path and those of the numbers."""

    def __init__(self, paths: Iterable[str], columns: Sequence[NDArray[Any]]) -> None:
        """Index columns of n integers by n paths.

        Raises:
            UserError: Two paths are the same, or have one digest.
        """
        keys = path_keys(paths)
        order = keys.argsort()
        self._keys = keys[order]
        self._columns = [_narrowed(column[order]) for column in columns]
        if (self._keys[1:] == self._keys[:-1]).any():
            raise UserError(
                f"two of {count(len(keys), 'image')} have one name, or names of one digest; rename "
                "a shard"
            )

    def __getitem__(self, path: str) -> tuple[int, ...]:
        """The numbers of a path; KeyError where it is not known."""
        key = _key(path)
        row = int(np.searchsorted(self._keys, key))
        if row == len(self._keys) or self._keys[row] != key:
            raise KeyError(path)
        return tuple(int(column[row]) for column in self._columns)


def _narrowed(column: NDArray[Any]) -> NDArray[Any]:
    """The column in 4 bytes a number where these hold it."""
    fits = not len(column) or column.max() < 2**32
    return column.astype(np.uint32) if fits else column


def path_keys(paths: Iterable[str], n: int = -1) -> NDArray[np.uint64]:
    """(n,) keys of n paths; with their number, no more memory is taken than they need."""
    return np.fromiter(map(_key, paths), np.uint64, n)


def _key(path: str) -> np.uint64:
    """64 bits of a digest, of which two are equal among ten million with a chance of 3e-6."""
    digest = hashlib.blake2b(path.encode(errors="surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))
