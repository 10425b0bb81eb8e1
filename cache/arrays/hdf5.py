"""The HDF5 file under a store: opened with plain errors, its arrays located, its texts written."""

import hashlib
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar

import h5py
import numpy as np

from cache.datasets import addresses
from cache.errors import UserError, printable
from cache.files.stamp import Stamp

T = TypeVar("T")

# What HDF5 and h5py make of bytes that are not theirs, and what this module objects to.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)


_AHEAD = 2**16  # bytes of a remote file at a time: headers are few and far between
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def within(address: str, use: Callable[[Any], T]) -> T:
    """The result of a function of the open HDF5 file at an address.

    No lock is taken: a store is never changed once it is visible, and network file systems
    often have no locks to give.

    Raises:
        UserError: HDF5 makes no sense of it, or it cannot be read.
    """

    def of_stream(stream: IO[bytes]) -> T:
        with h5py.File(stream, "r") as file:
            return _plainly(address, lambda: use(file))

    def of_file() -> T:
        with h5py.File(address, "r", locking=False) as file:
            return use(file)

    if addresses.is_remote(address):
        return _plainly(address, lambda: addresses.through(address, of_stream, _AHEAD))
    return _plainly(address, of_file)


def _plainly(address: str, read: Callable[[], T]) -> T:
    """The result of a function that reads; an error of HDF5 becomes one line that says so."""
    try:
        return read()
    except BlockingIOError as error:  # where HDF5_USE_FILE_LOCKING overrides what we ask for
        raise UserError(
            f"{address} is locked by another process, and HDF5 insists on locks here; wait for it, "
            "or set HDF5_USE_FILE_LOCKING=FALSE"
        ) from error
    except UserError:
        raise
    except OutsideError as error:
        raise UserError(
            f"{address} refers outside itself ({printable(str(error))}), which no store of fewshot "
            "does; do not trust it, and make it again"
        ) from error
    except _DAMAGE as error:
        raise UserError(
            f"{address} is damaged or cut short; delete it and make it again"
        ) from error


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


def root(file: Any) -> Any:
    """The group at the top of an open HDF5 file."""
    return h5py.h5g.open(file.id, b"/")


class OutsideError(Exception):
    """A part of a file is not in that file, or is in it under two names."""


def places(file: Any, size: int) -> dict[str, Place]:
    """Where every array in an open HDF5 file is, by names such as `train/labels`.

    No link is followed and no array is read to find out, and what HDF5 says of an array is held
    against the size of the file.

    Args:
        file: The file.
        size: Its bytes.

    Raises:
        OutsideError: A soft or external link, a second name of one object, or an array that is
            virtual, in external files, in chunks, or in bytes that another one has as well.
        KeyError: An object is none that this program writes.
    """
    found = {name: _place(name, dataset, size) for name, dataset in _datasets(root(file))}
    end, before = 0, ""
    for name, place in sorted(found.items(), key=lambda item: item[1].offset):
        if place.nbytes and place.offset < end:
            raise OutsideError(f"{name} shares bytes with {before}")
        end, before = max(end, place.offset + place.nbytes), name
    return found


def attributes(thing: Any) -> dict[str, Any]:
    """The attributes of an HDF5 object: single values of at most 64 bytes.

    Raises:
        KeyError: One is something else.
    """
    count = h5py.h5a.get_num_attrs(thing)
    if count > 5:
        raise KeyError(f"{count} attributes, more than any object of a store has")
    found = {}
    for i in range(count):
        attribute = h5py.h5a.open(thing, index=i)
        kind = attribute.get_type().get_class()
        if attribute.shape != () or attribute.get_storage_size() > 64 or kind not in _SINGLE:
            raise KeyError(f"attribute {attribute.name!r} is no single value")
        if attribute.dtype.kind not in "biufS":
            raise KeyError(f"attribute {attribute.name!r} is text without a width")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        found[attribute.name.decode()] = value[()]
    return found


_SINGLE = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)


def _datasets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dataset below a group, by its name from the top."""
    for key in group:
        name = prefix + key.decode()
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise OutsideError(f"{name} is a link")
        thing = h5py.h5o.open(group, key)
        if h5py.h5o.get_info(thing).rc != 1:
            raise OutsideError(f"{name} has more than one name")
        if isinstance(thing, h5py.h5d.DatasetID):
            yield name, thing
        elif isinstance(thing, h5py.h5g.GroupID) and not attributes(thing):
            yield from _datasets(thing, f"{name}/")
        else:
            raise KeyError(f"{name} is no array and no plain group")


def _place(name: str, dataset: Any, size: int) -> Place:
    plan, kind = dataset.get_create_plist(), dataset.get_type()
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_external_count():
        raise OutsideError(f"{name} is not in one piece in this file")
    if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING):
        raise KeyError(f"{name} holds neither numbers nor text")
    said = attributes(dataset)
    digest = said.get("sha256")
    if len(said) != 1 or not isinstance(digest, bytes) or dataset.dtype.kind not in "iufS":
        raise KeyError(f"{name} has no digest, or text without a width")
    place = Place(dataset.get_offset() or 0, dataset.shape, dataset.dtype.str, digest.decode())
    if place.offset + place.nbytes > size or (place.nbytes and not place.offset):
        raise KeyError(f"{name} does not end within the file")
    return place


def stamp(address: str) -> Stamp:
    """The stamp of an HDF5 file, by which a replaced one is known.

    Raises:
        UserError: There is none, it cannot be read, or is no HDF5 file.
    """
    try:
        found = addresses.stamp(address)
        start = addresses.read(address, 0, min(found.size, len(_SIGNATURE)))
    except FileNotFoundError as error:
        dataset = Path(address).parent.name
        remedy = f"make it with: fewshot extract --dataset {shlex.quote(dataset)}"
        if not dataset:
            remedy = "give the file of a store, such as features/dtd/tiny.h5"
        raise UserError(f"no store at {address}; {remedy}") from error
    except OSError as error:
        raise UserError(
            f"cannot read {address}: {error.strerror or error}; give a store file"
        ) from error
    if start != _SIGNATURE:
        raise UserError(f"{address} is not an HDF5 file, so no feature store; name another")
    return found


def datasets(file: Any) -> list[Any]:
    """Every dataset in an HDF5 file that this program writes, in the order of their names."""
    found: list[Any] = []
    file.visititems(
        lambda _, thing: found.append(thing) if isinstance(thing, h5py.Dataset) else None
    )
    return found


def reserve(file: Any, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Give a matrix its place in the file now, in one piece, to be filled in any order."""
    place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    place.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    file.create_dataset(name, shape, dtype, dcpl=place)


def write_strings(group: Any, name: str, value: str | Sequence[str]) -> None:
    """Text in fields of one width: HDF5's own strings lie in a heap without checksums.

    One changed bit in that heap, and reading it never ends. Of many texts, a few at a time are in
    memory.
    """
    texts = [value] if isinstance(value, str) else value
    width = max(len(code) for code in chain([b"-"], map(_encoded, texts)))
    field, remaining, start = h5py.string_dtype("utf-8", width), iter(texts), 0
    shape = () if isinstance(value, str) else (len(texts),)
    dataset = group.create_dataset(name, shape, field)
    while some := list(map(_encoded, islice(remaining, _TEXTS))):
        block = np.array(some, field)
        dataset[() if isinstance(value, str) else slice(start, start + len(some))] = (
            block[0] if isinstance(value, str) else block
        )
        start += len(some)


_TEXTS = 2**16  # that are written at once


def _encoded(text: str) -> bytes:
    code = text.encode(errors="surrogatepass")
    if b"\0" in code or code != text.encode(errors="replace"):
        raise UserError(f"{text!r} is no valid UTF-8 and cannot be stored; rename it")
    return code


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
