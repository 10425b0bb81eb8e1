"""A table from paths to numbers, small enough for tens of millions of them."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError


class PathIndex:
    """Some numbers for each of many paths, in 8 bytes a path and those of the numbers."""

    def __init__(self, paths: Iterable[str], values: NDArray[np.int64]) -> None:
        """Index (n, k) values by n paths.

        Raises:
            UserError: A path is there twice.
        """
        known = list(paths)
        keys = np.fromiter(map(_key, known), np.uint64, len(known))
        order = keys.argsort()
        self._keys, self._values = keys[order], values[order]
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            raise UserError(
                f"{known[order[twice[0]]]} is there twice; give each image its own name"
            )

    def __getitem__(self, path: str) -> tuple[int, ...]:
        """The numbers of a path; KeyError where it is not known."""
        key = _key(path)
        row = int(np.searchsorted(self._keys, key))
        if row == len(self._keys) or self._keys[row] != key:
            raise KeyError(path)
        return tuple(map(int, self._values[row]))


def _key(path: str) -> int:
    """64 bits of a digest, of which two are equal among ten million with a chance of 3e-6."""
    digest = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
