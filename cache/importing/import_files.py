"""Named arrays out of other people's files: `.npz`, PyTorch's `.pt`, and folders of `.pt`.

Nothing here ever unpickles: NumPy's and PyTorch's pickled objects can run any code they like.
"""

import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cache.datasets.mat_files import SPLITS, read_proposed_split
from cache.errors import UserError

LARGE = 2**28  # bytes of an array beyond which it may not unpack to more than
UNPACKED = 20  # times its bytes in the archive; features in float32 shrink to 9/10
KINDS = "biufU"  # of NumPy's types: numbers and text


@dataclass(frozen=True)
class Arrays:
    """The arrays of one file or folder, each read when it is asked for.

    Attributes:
        names: What there is, sorted.
        read: The array of a name.
        file: The file in which the array of a name lies.
    """

    names: tuple[str, ...]
    read: Callable[[str], NDArray[Any]]
    file: Callable[[str], Path]


def open_arrays(path: Path) -> Arrays:
    """The arrays of a `.npz` or `.pt` file, a folder of `.pt` files, or a proposed split's folder.

    Raises:
        UserError: Not there, of another kind, damaged, or pickled.
    """
    if path.is_dir():
        return _proposed_split(path) if (path / SPLITS).exists() else _folder(path)
    if not path.exists():
        raise UserError(f"no file or folder at {path}; give a .npz, a .pt, or a folder of .pt")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix in (".pt", ".pth"):
        return _pt(path)
    raise UserError(f"features come as .npz, .pt, or a folder of .pt; got {path.name}")


def _proposed_split(path: Path) -> Arrays:
    read = read_proposed_split(path)
    return Arrays(tuple(sorted(read.arrays)), read.arrays.__getitem__, read.files.__getitem__)


def _npz(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _DAMAGE as error:
        raise UserError(f"{path} is no .npz archive, or is damaged; get it again") from error
    arrays = {member.filename.removesuffix(".npy"): member for member in members}
    return Arrays(tuple(sorted(arrays)), lambda n: _member(path, n, arrays[n]), lambda _: path)


def _member(path: Path, name: str, member: zipfile.ZipInfo) -> NDArray[Any]:
    """An array of a `.npz` file, whose declared sizes are believed no further than they agree."""
    damaged = UserError(f"{path} is cut short or damaged at array {name}; get it again")
    if member.file_size > LARGE and member.file_size > UNPACKED * member.compress_size:
        raise UserError(
            f"array {name} of {path.name} unpacks {member.compress_size:,} bytes to "
            f"{member.file_size:,}, as no features do; save it with numpy.savez"
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            shape, in_columns, dtype = _header(file)
            if dtype.hasobject:
                raise UserError(
                    f"array {name} of {path.name} is pickled and may hold code; save it as plain "
                    "numbers, or as text with dtype=str"
                )
            nbytes = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or nbytes > member.file_size or dtype.kind not in KINDS:
                raise damaged
            content = file.read(nbytes + 1)
    except _DAMAGE as error:
        raise damaged from error
    if len(content) != nbytes:
        raise damaged
    array: NDArray[Any] = np.frombuffer(content, dtype) if nbytes else np.empty(shape, dtype)
    return array.reshape(shape, order="F" if in_columns else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape of the array that follows, whether its columns come first, and its type.

    Raises:
        OSError: There is no such header.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        return readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError,
            MemoryError, OverflowError) as error:  # fmt: skip
        raise OSError("no header of an array") from error


def _pt(path: Path) -> Arrays:
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise UserError(f"{path.name} is one tensor without a name; give its folder, {path.parent}")
    named = {str(name): value for name, value in arrays.items()}
    return Arrays(
        tuple(sorted(named)),
        lambda name: _array(named[name], f"{name} of {path.name}"),
        lambda _: path,
    )


def _folder(path: Path) -> Arrays:
    files = {file.stem: file for file in sorted(path.glob("*.pt"))}
    if not files:
        raise UserError(f"no .pt files in {path}; give the folder they are in, or a .npz")

    def read(name: str) -> NDArray[Any]:
        return _as_rows(name, _array(_load(files[name]), files[name].name))

    return Arrays(tuple(files), read, files.__getitem__)


def _as_rows(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array of a Tip-Adapter or APE cache with one row per image, or per class.

    Tip-Adapter keeps its keys (D, N), its values one-hot (N, C) and its text weights (D, C);
    APE adds text weights per prompt (C, T, D). See `build_cache_model` and `clip_classifier` in
    https://github.com/gaopengcuhk/Tip-Adapter/blob/main/utils.py.
    """
    if re.match(r"keys_\d+shots", name) or (name.startswith("text_weights") and array.ndim == 2):
        return array.T
    if re.match(r"values_\d+shots", name) and array.ndim == 2 and array.size:
        return np.asarray(array.argmax(axis=1))
    if name.startswith("text_weights") and array.ndim == 3:
        return array.swapaxes(0, 1)
    return array


def _load(path: Path) -> Any:
    import torch  # takes a second or two, and a .npz needs none of it

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch checks no checksum
                stored = all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
                if not stored or archive.testzip() is not None:
                    raise OSError("a checksum or a size is not the one that was written")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the unpickler
        raise UserError(
            f"{path} is damaged or holds more than tensors, which may be code; save plain tensors"
        ) from error


def _array(value: Any, what: str) -> NDArray[Any]:
    import torch

    wanted = UserError(f"{what} should be a dense tensor, or a list of text or numbers")
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            # One number may stand for a billion, which would take the memory of a billion.
            if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
                raise wanted
            value = (value.float() if value.is_floating_point() else value).numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise wanted from error
    if array.dtype.kind not in KINDS:
        raise wanted
    return array


# What the zip module makes of bytes that are none of its; the last two: encrypted, and compressed
# by a method that it does not know.
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    NotImplementedError,
)
