"""The arrays of a store, read from where their bytes are in the file.

HDF5 is asked once where each array is, when the store is opened. Everything after that is a plain
read of a known number of bytes, so no array can grow in memory beyond the file it came from.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError
from cache.hdf5 import Place, stamp_of

UNIT_TOLERANCE = 1e-3  # float16 keeps a component to 2^-11 of itself, and so the norm
BLOCK = 16_384  # rows
CHECKED = 2**26  # bytes of a matrix that are hashed, in 50 ms, for a few of its rows


@dataclass(frozen=True)
class Contents:
    """The arrays of one store file, by names such as `train/labels`; pickles and forks.

    Attributes:
        path: The file.
        stamp: Its size and time of change; a file replaced since is refused.
        places: Where each array is.
    """

    path: Path
    stamp: tuple[int, int]
    places: Mapping[str, Place]

    def __contains__(self, name: str) -> bool:
        """Whether there is an array of that name."""
        return name in self.places

    def array(self, name: str) -> NDArray[Any]:
        """The whole array, its bytes compared with their digest.

        Raises:
            UserError: They are not the bytes that were written, or the file was replaced.
        """
        place = self.places[name]
        with self._open() as file:
            content = bytearray(place.nbytes)
            file.seek(place.offset)
            if file.readinto(content) < len(content):
                raise self.damaged(name)
        if hashlib.sha256(content).hexdigest() != place.sha256:
            raise self.damaged(name)
        return np.frombuffer(content, place.dtype).reshape(place.shape)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """A (..., D) matrix in pieces of (n, D), leading axes counting as one; not compared."""
        place = self.places[name]
        left, width = math.prod(place.shape[:-1]), place.shape[-1]
        with self._open() as file:
            file.seek(place.offset)
            while left:
                block = np.empty((min(left, BLOCK), width), place.dtype)
                if file.readinto(block.data) < block.nbytes:
                    raise self.damaged(name)
                yield block
                left -= len(block)

    def check(self, name: str) -> None:
        """Raise UserError if the array's bytes are not the ones that were written."""
        if not self.is_unchanged(name):
            raise self.damaged(name)

    def json(self, name: str) -> dict[str, Any]:
        """The mapping that the text of an array is the JSON of; errors as of `array`."""
        try:
            found = json.loads(self.strings(name)[0])
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.damaged(name)
        return found

    def strings(self, name: str) -> list[str]:
        """The texts of an array of them; errors as of `array`."""
        try:
            return [code.decode() for code in self.array(name).reshape(-1).tolist()]
        except UnicodeDecodeError:
            raise self.damaged(name) from None

    def rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) rows of a (..., D) float16 matrix, unit norm again, in the order given.

        Neighboring rows are read in one piece and rows in between not at all; on 16 shots of
        ImageNet this takes 1/20 of the time of HDF5's own selections. A matrix of up to 64 MiB is
        compared with its digest first.

        Args:
            name: The matrix; leading axes count as one.
            rows: (n,) rows, all of them there.

        Raises:
            UserError: The bytes are not the ones that were written, or the file was replaced.
        """
        place = self.places[name]
        if rows.size == 0:
            return np.empty((0, place.shape[-1]), np.float32)
        if place.nbytes <= CHECKED:
            self.check(name)
        wanted, inverse = np.unique(rows, return_inverse=True)
        block = np.empty((len(wanted), place.shape[-1]), place.dtype)
        gaps = np.flatnonzero(np.diff(wanted) > 1) + 1
        with self._open() as file:
            for start, stop in itertools.pairwise([0, *gaps.tolist(), len(wanted)]):
                file.seek(place.offset + int(wanted[start]) * block.strides[0])
                if file.readinto(block[start:stop].data) < (stop - start) * block.strides[0]:
                    raise self.damaged(name)
        norms = np.linalg.norm(block.astype(np.float32), axis=1)
        if not (np.abs(norms - 1) <= UNIT_TOLERANCE).all():  # NaN counts as off
            raise self.damaged(name)
        return unit(block if np.array_equal(wanted, rows) else block[inverse])

    def is_unchanged(self, name: str) -> bool:
        """True if the array's bytes are the ones that were written."""
        place = self.places[name]
        sha, left = hashlib.sha256(), place.nbytes
        with self._open() as file:
            file.seek(place.offset)
            while left and (chunk := file.read(min(left, 1 << 24))):
                sha.update(chunk)
                left -= len(chunk)
        return sha.hexdigest() == place.sha256

    def damaged(self, what: str) -> UserError:
        """The error for bytes that are not the ones that were written."""
        return UserError(
            f"{self.path} is damaged: the bytes of /{what} are not the ones that were written; "
            "delete it and make it again"
        )

    @contextmanager
    def _open(self) -> Iterator[BufferedReader]:
        try:
            with self.path.open("rb") as file:
                if stamp_of(file) != self.stamp:
                    raise UserError(f"{self.path} was replaced while in use; run again")
                yield file
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """The vectors along the last axis with norm 1, as float32."""
    vectors = vectors.astype(np.float32)
    vectors /= np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return vectors
