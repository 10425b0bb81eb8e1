"""The HDF5 file under a store: opened with plain errors, its arrays located, its texts written."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from cache.errors import UserError


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The open HDF5 file; what HDF5 cannot make sense of becomes one line that says so.

    No lock is taken: a store is never changed once it is visible, and network file systems
    often have no locks to give.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except BlockingIOError as error:  # where HDF5_USE_FILE_LOCKING overrides what we ask for
        raise UserError(
            f"{path} is locked by another process, and HDF5 insists on locks here; wait for it, "
            "or set HDF5_USE_FILE_LOCKING=FALSE"
        ) from error
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or cut short; delete it and extract again") from error


@dataclass(frozen=True)
class Place:
    """Where the bytes of an array are in the file, and which they are.

    Attributes:
        offset: Of its first byte.
        shape: Its axes; () for a single text.
        dtype: NumPy's name of its type, such as `<f2`, or `|S12` for texts of up to 12 bytes.
        sha256: The digest that was written with it, in hex.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def places(file: Any) -> dict[str, Place]:
    """Where every array in an open HDF5 file is, by names such as `train/labels`.

    Raises:
        KeyError: One of them has no digest.
    """
    return {
        dataset.name.removeprefix("/"): Place(
            offset=dataset.id.get_offset() or 0,
            shape=dataset.shape,
            dtype=dataset.dtype.str,
            sha256=bytes(dataset.attrs["sha256"]).decode(),
        )
        for dataset in datasets(file)
    }


def datasets(file: Any) -> list[Any]:
    """Every dataset in an open HDF5 file, in the order of their names."""
    found: list[Any] = []
    file.visititems(
        lambda _, thing: found.append(thing) if isinstance(thing, h5py.Dataset) else None
    )
    return found


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a readable file, by which a replaced one is known."""
    try:
        with path.open("rb") as file:
            return stamp_of(file)
    except FileNotFoundError:
        raise UserError(
            f"no store at {path}; make it with: fewshot extract --dataset {path.parent.name}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a store file") from error


def stamp_of(file: BinaryIO) -> tuple[int, int]:
    """The `stamp` of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def reserve(file: Any, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Give a matrix its place in the file now, in one piece, to be filled in any order."""
    place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    place.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    file.create_dataset(name, shape, dtype, dcpl=place)


def write_strings(group: Any, name: str, value: str | Sequence[str]) -> None:
    """Text in fields of one width: HDF5's own strings lie in a heap without checksums.

    One changed bit in that heap, and reading it never ends.
    """
    texts = [value] if isinstance(value, str) else value
    encoded = [text.encode(errors="surrogatepass") for text in texts]
    for text, code in zip(texts, encoded, strict=True):
        if b"\0" in code or code != text.encode(errors="replace"):
            raise UserError(f"{text!r} is no valid UTF-8 and cannot be stored; rename it")
    field = h5py.string_dtype("utf-8", max(map(len, [b"-", *encoded])))
    data = np.array(encoded, dtype=field)
    group.create_dataset(name, data=data[0] if isinstance(value, str) else data, dtype=field)


def digest(path: Path, dataset: Any) -> str:
    """SHA-256 of what a dataset holds, in hex: of its bytes as they lie in the file.

    Args:
        path: The file that holds the dataset, with nothing left to be flushed.
        dataset: Contiguous; numbers, or strings of one width.
    """
    sha, left = hashlib.sha256(), dataset.nbytes
    with path.open("rb") as file:
        file.seek(dataset.id.get_offset() or 0)
        while left and (chunk := file.read(min(left, 1 << 24))):
            sha.update(chunk)
            left -= len(chunk)
    return sha.hexdigest()
