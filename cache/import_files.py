"""Named arrays out of other people's files: `.npz`, PyTorch's `.pt`, and folders of `.pt`.

Nothing here ever unpickles: NumPy's and PyTorch's pickled objects can run any code they like.
"""

import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError


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
    """The arrays of a `.npz` or `.pt` file, or of a folder of `.pt` files.

    Raises:
        UserError: Not there, of another kind, damaged, or pickled.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UserError(f"no file or folder at {path}; give a .npz, a .pt, or a folder of .pt")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix in (".pt", ".pth"):
        return _pt(path)
    raise UserError(f"features come as .npz, .pt, or a folder of .pt; got {path.name}")


def _npz(path: Path) -> Arrays:
    def read(name: str) -> NDArray[Any]:
        try:
            with np.load(path, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except ValueError:
            raise UserError(
                f"array {name} of {path.name} is pickled and may hold code; save it as plain "
                "numbers, or as text with dtype=str"
            ) from None
        except _DAMAGE as error:
            raise UserError(f"{path} is cut short or damaged; get it again") from error

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except _DAMAGE as error:
        raise UserError(f"{path} is no .npz archive, or is damaged; get it again") from error
    return Arrays(tuple(sorted(m.removesuffix(".npy") for m in members)), read, lambda _: path)


def _pt(path: Path) -> Arrays:
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise UserError(f"{path.name} is one tensor without a name; give its folder, {path.parent}")
    return Arrays(
        tuple(sorted(map(str, arrays))),
        lambda name: _array(arrays[name], f"{name} of {path.name}"),
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
    if re.match(r"values_\d+shots", name) and array.ndim == 2:
        return np.asarray(array.argmax(axis=1))
    if name.startswith("text_weights") and array.ndim == 3:
        return array.swapaxes(0, 1)
    return array


def _load(path: Path) -> Any:
    import torch  # takes a second or two, and a .npz needs none of it

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the unpickler
        raise UserError(
            f"{path} is damaged or holds more than tensors, which may be code; save plain tensors"
        ) from error


def _array(value: Any, what: str) -> NDArray[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach()
        return np.asarray((value.float() if value.is_floating_point() else value).numpy())
    array = np.asarray(value)
    if array.dtype.kind not in "biufU":
        raise UserError(f"{what} should be a tensor, or a list of text; got {type(value).__name__}")
    return array


_DAMAGE = (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
