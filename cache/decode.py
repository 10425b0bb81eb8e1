"""From an image file to RGB pixels, with one kind of error for all that can be wrong with it."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def read_rgb(path: Path, *, exif: bool) -> Image.Image:
    """The image in a file, as RGB.

    Color goes through Pillow's own conversion, as in CLIP's preprocessing: transparency is
    dropped and of an animation the first frame is taken. Gray of 16 bits, and of floats between
    0 and 1, is scaled to 8 bits, where that conversion would clip it.

    Args:
        path: The file.
        exif: Turn it upright as its EXIF orientation says.

    Raises:
        OSError: There is no such file, or it does not decode to the end.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise OSError("the file is empty")
    with _readable(path), Image.open(path) as image:
        return to_rgb(image, exif=exif)


def to_rgb(image: Image.Image, *, exif: bool) -> Image.Image:
    """An image that is open already, as RGB; all else as `read_rgb`."""
    with _readable(Path(getattr(image, "filename", ""))):
        image.load()
        return _rgb(ImageOps.exif_transpose(image) if exif else image)


def check_header(path: Path) -> None:
    """Raise OSError unless there is a file that begins as an image does; pixels are not decoded."""
    with _readable(path):
        if path.stat().st_size == 0:
            raise OSError("the file is empty")
        with Image.open(path):
            pass


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, also where Pillow keeps them in 32
        gray = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    elif image.mode == "F" and (gray := np.asarray(image)).max() <= 1:
        image = Image.fromarray((gray.clip(0, 1) * 255).round().astype(np.uint8))
    return image.convert("RGB")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a decoder raises on damaged bytes becomes an OSError with a reason."""
    try:
        with _QUIET:
            yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file at {path}") from error
    except UnidentifiedImageError as error:
        raise OSError("not an image in any format that Pillow knows") from error
    except OSError as error:
        raise OSError(error.strerror or str(error)) from error
    except Exception as error:  # decoders raise ValueError, SyntaxError, struct.error and more
        raise OSError(str(error) or type(error).__name__) from error


class _Quiet:
    """Warnings off for as long as any thread is inside.

    Pillow warns of large sizes and of odd metadata, of no use to somebody encoding thousands of
    photographs. `warnings.catch_warnings` in each thread would not do: what it saves and puts back
    belongs to all threads, so overlapping uses leave it changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._off = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._off.enter_context(warnings.catch_warnings(action="ignore"))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._off.close()


_QUIET = _Quiet()
