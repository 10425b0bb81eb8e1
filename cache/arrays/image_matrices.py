"""Writing what a store has of each image: features, views and pooled images, with their norms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.arrays.hdf5 import reserve
from cache.errors import UserError
from cache.files.disk import DiskFile

NORMS = {
    "features": "norms",
    "pooled": "pooled_norms",
    "views": "view_norms",
    "pooled_views": "pooled_view_norms",
}


class ImageMatrices:
    """The matrices of one split in an open HDF5 file. Each row is written once, in any order."""

    def __init__(
        self, path: Path, file: Any, disk: DiskFile, split: str, name: Callable[[bool, int], str]
    ) -> None:
        """Nothing is in the file yet.

        Args:
            path: The file that is to be made, for messages.
            file: The HDF5 file.
            disk: What it is written to.
            split: train, val or test.
            name: Called with whether it is a row of views, and its place; names the image.
        """
        self._path, self._file, self._disk = path, file, disk
        self._split, self._name = split, name
        self._written: dict[str, NDArray[np.bool_]] = {}

    def reserve(self, vectors: str, shape: tuple[int, ...]) -> None:
        """Give (..., n, D) vectors, a key of `NORMS`, and their norms their place in the file."""
        self._written[vectors] = np.zeros(shape[-2], np.bool_)
        reserve(self._file, f"{self._split}/{vectors}", shape, "<f2")
        reserve(self._file, f"{self._split}/{NORMS[vectors]}", shape[:-1], "<f4")

    def write(self, vectors: str, start: int, block: ArrayLike) -> None:
        """Write (..., b, D) vectors, as the encoder gave them, from the place `start` on.

        Raises:
            UserError: A vector is not finite or is zero, or the disk is full.
            ValueError: A row is beyond the end, or was written before.
        """
        given = np.asarray(block)
        at = self._claim(vectors, start, given.shape[-2])
        unit, norms = unit_and_norms(given)
        bad = np.argwhere(~usable(norms))
        if len(bad):
            first = self._name(given.ndim == 3, at.start + int(bad[0][-1]))
            raise UserError(
                f"{self._split} features must be finite and not zero; {len(bad)} of {norms.size} "
                f"are not, the first is {first}; leave it out, or encode with --precision fp32"
            )
        self._file[f"{self._split}/{vectors}"][..., at, :] = unit.astype("<f2")
        self._file[f"{self._split}/{NORMS[vectors]}"][..., at] = norms.astype("<f4")
        self._disk.report(self._path)

    def check_complete(self) -> None:
        """Raise unless each row was written.

        Raises:
            ValueError: Some were not.
        """
        for name, written in self._written.items():
            if not written.all():
                raise ValueError(
                    f"{self._split}/{name}: {np.sum(~written)} of {len(written)} rows not written"
                )

    def _claim(self, name: str, start: int, count: int) -> slice:
        written = self._written[name]
        if start < 0 or start + count > len(written) or written[start : start + count].any():
            raise ValueError(
                f"{self._split}/{name}: rows {start}..{start + count - 1} of {len(written)} are "
                "beyond the end or were written before"
            )
        written[start : start + count] = True
        return slice(start, start + count)


def unit_and_norms(block: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (..., D) vectors at unit norm, and their norms (...)."""
    vectors = np.ascontiguousarray(block, dtype=np.float64)  # one layout, so one order of summation
    norms = np.sqrt(np.square(vectors).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return vectors / norms[..., None], norms


def usable(norms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for norms of float32 that are finite and not zero."""
    tiny, huge = float(np.finfo("f4").tiny), float(np.finfo("f4").max)
    return (norms >= tiny) & (norms <= huge)  # false for NaN as well
