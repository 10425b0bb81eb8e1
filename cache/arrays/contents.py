"""The arrays of a store, read from where their bytes are in the file.

HDF5 is asked once where each array is, when the store is opened. Everything after that is a plain
read of a known number of bytes, so no array can grow in memory beyond the file it came from.
"""

import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.arrays.hdf5 import Place
from cache.datasets import addresses
from cache.errors import UserError
from cache.files.stamp import Stamp

T = TypeVar("T")

UNIT_TOLERANCE = 1e-3  # float16 keeps a component to 2^-11 of itself, and so the norm
BLOCK = 16_384  # rows
MANY, FEW = 2**22, 2**12  # bytes that a remote read fetches, of all of an array and of some rows
CHECKED = 2**26  # bytes of a matrix that are hashed, in 50 ms, for a few of its rows


@dataclass(frozen=True)
class Contents:
    """The arrays of one file of a store, by names such as `train/labels`; pickles and forks.

    Attributes:
        address: The file: a path, or a URL that fsspec knows.
        stamp: Its size and time of change; a file replaced since is refused.
        places: Where each array is.
    """

    address: str
    stamp: Stamp
    places: Mapping[str, Place]

    def __contains__(self, name: str) -> bool:
        """True if there is an array of that name."""
        return name in self.places

    @property
    def files(self) -> "tuple[Contents, ...]":
        """The contents of each file."""
        return (self,)

    def array(self, name: str) -> NDArray[Any]:
        """The whole array, its bytes compared with their digest.

        Raises:
            UserError: They are not the bytes that were written, or the file was replaced.
        """
        place = self.places[name]

        def read(file: IO[bytes]) -> bytearray:
            content = bytearray(place.nbytes)
            self._fill(name, file, place.offset, content)
            return content

        content = self._through(read)
        if hashlib.sha256(content).hexdigest() != place.sha256:
            raise self.damaged(name)
        return np.frombuffer(content, place.dtype).reshape(place.shape)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """A (..., D) matrix in pieces of (n, D), leading axes counting as one; not compared."""
        place = self.places[name]
        n, width = math.prod(place.shape[:-1]), place.shape[-1]
        for start in range(0, n, BLOCK):
            block = np.empty((min(n - start, BLOCK), width), place.dtype)
            at = place.offset + start * block.strides[0]
            self._through(functools.partial(self._fill_block, name, at, block))
            yield block

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
        block = self.ascending_rows(name, wanted)
        norms = np.linalg.norm(block.astype(np.float32), axis=1)
        if not (np.abs(norms - 1) <= UNIT_TOLERANCE).all():  # NaN counts as off
            raise self.damaged(name)
        return unit(block if np.array_equal(wanted, rows) else block[inverse])

    def ascending_rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n, D) rows of a (..., D) matrix as they lie in the file, for n ascending rows.

        Raises:
            UserError: The file was replaced, or is cut short.
        """
        place = self.places[name]
        block = np.empty((len(rows), place.shape[-1]), place.dtype)
        gaps = np.flatnonzero(np.diff(rows) > 1) + 1

        def read(file: IO[bytes]) -> None:
            for start, stop in itertools.pairwise([0, *gaps.tolist(), len(rows)]):
                at = place.offset + int(rows[start]) * block.strides[0]
                self._fill(name, file, at, block[start:stop].data)

        self._through(read, ahead=FEW)
        return block

    def is_unchanged(self, name: str) -> bool:
        """True if the array's bytes are the ones that were written."""
        place = self.places[name]

        def digest(file: IO[bytes]) -> str:
            sha, left = hashlib.sha256(), place.nbytes
            file.seek(place.offset)
            while left and (chunk := file.read(min(left, 1 << 24))):
                sha.update(chunk)
                left -= len(chunk)
            return sha.hexdigest()

        return self._through(digest) == place.sha256

    def damaged(self, what: str) -> UserError:
        """The error for bytes that are not the ones that were written."""
        return UserError(
            f"{self.address} is damaged: the bytes of /{what} are not the ones that were written; "
            "delete it and make it again"
        )

    def _fill_block(self, name: str, at: int, block: NDArray[Any], file: IO[bytes]) -> None:
        self._fill(name, file, at, block.data)

    def _fill(self, name: str, file: IO[bytes], at: int, into: bytearray | memoryview) -> None:
        """Read as many bytes as there is room for."""
        file.seek(at)
        view = memoryview(into)
        if file.readinto(view) < view.nbytes:  # type: ignore[attr-defined]  # of any binary file
            raise self.damaged(name)

    def _through(self, use: Callable[[IO[bytes]], T], ahead: int = MANY) -> T:
        """The result of a function of the open file, once it is sure that it is the same."""

        def unchanged(file: IO[bytes]) -> T:
            if addresses.is_remote(self.address):
                same = file.seek(0, os.SEEK_END) == self.stamp.size
            else:
                found = os.fstat(file.fileno())
                same = (found.st_size, found.st_mtime_ns) == self.stamp
            if not same:
                raise UserError(f"{self.address} was replaced while in use; run again")
            return use(file)

        try:
            return addresses.through(self.address, unchanged, ahead)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot read {self.address}: {reason}") from error


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """The vectors along the last axis with norm 1, as float32."""
    vectors = vectors.astype(np.float32)
    vectors /= np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return vectors
