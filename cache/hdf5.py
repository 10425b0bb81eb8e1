"""The HDF5 file under a store: opened with plain errors, its matrices read past HDF5."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

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
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        raise UserError(
            f"no store at {path}; make it with: fewshot extract --dataset {path.parent.name}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a store file") from error
    return status.st_size, status.st_mtime_ns


def gather(path: Path, dataset: Any, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, D) rows of a float16 matrix, in the order given, repeats included, as unit vectors.

    Reads those rows and no others, neighboring ones in one go. HDF5's own selection of
    scattered rows takes many times as long, and a memory map keeps a dozen pages resident
    for each row that it touches.

    Args:
        path: The file that holds the dataset.
        dataset: (..., D) h5py dataset, contiguous; leading axes count as one.
        rows: (n,) rows, all of them there.
    """
    if rows.size == 0:
        return np.empty((0, dataset.shape[-1]), np.float32)
    wanted, inverse = np.unique(rows, return_inverse=True)
    block = np.empty((len(wanted), dataset.shape[-1]), "<f2")
    offset = dataset.id.get_offset()
    if offset is None:
        raise UserError(
            f"{path} was repacked, its features are no longer in one piece; get the original"
        )
    gaps = np.flatnonzero(np.diff(wanted) > 1) + 1
    with path.open("rb") as file:
        for start, stop in itertools.pairwise([0, *gaps.tolist(), len(wanted)]):
            file.seek(offset + int(wanted[start]) * block.strides[0])
            if file.readinto(block[start:stop].data) < (stop - start) * block.strides[0]:
                raise OSError(f"{path} ends before row {wanted[stop - 1]}")
    return unit(block if np.array_equal(wanted, rows) else block[inverse])


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


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """The vectors along the last axis with norm 1, as float32."""
    vectors = vectors.astype(np.float32)
    vectors /= np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    return vectors
