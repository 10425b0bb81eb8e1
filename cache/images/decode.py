"""From an image file to RGB pixels: the only place that opens one.

Files are other people's bytes, so the formats are a fixed list, the size is checked before any
pixel is decoded, and whatever a decoder raises becomes an OSError with a reason.
"""

import contextlib
import io
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cache.images import gray
from cache.images.completeness import is_complete
from cache.images.decoding_memory import MAX_PIXELS, MEMORY
from cache.images.turbo_jpeg import Pixels, decoded_jpeg

# Formats whose decoders start no program and read no other file. Pillow knows more of them by
# content, whatever a file is called: EPS starts `gs`, and an icon decodes the file inside it.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_SIDE = 4_000_000  # decoders work row by row, a fifth of a microsecond each
NO_IMAGE = f"not an image in any format that is read: {', '.join(FORMATS)}"
# While it is decoded, as measured: in Pillow, the file's own mode and RGB beside it; the libraries
# of some formats hold pictures of their own.
_BYTES_PER_PIXEL = {"AVIF": 10, "WEBP": 16, "JPEG2000": 20}
_ELSE = 8  # also what a pixel takes at most in a file: 16 bits of four channels, uncompressed


def read_rgb(given: Path | bytes, *, exif: bool, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file or its content, as RGB; all else as `opened`."""
    with opened(given, exif=exif, max_pixels=max_pixels) as image:
        return image


@contextlib.contextmanager
def opened(
    given: Path | bytes | Image.Image, *, exif: bool, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """An image as RGB, counted against the process's memory for decoded images inside the block.

    Color goes through Pillow's own conversion, as in CLIP's preprocessing: transparency is
    dropped and of an animation the first frame is taken. Gray of more than 8 bits, and of floats
    between 0 and 1, is scaled to 8 bits, where that conversion would clip it.

    Args:
        given: A file, the content of one, or an image that is open already.
        exif: Turn it upright as its EXIF orientation says.
        max_pixels: Width times height that is still decoded.

    Raises:
        OSError: There is no such file, it is too large, or it does not decode to the end.
    """
    with _held(given, max_pixels) as image:
        with _reasons(given):
            rgb = _decoded(image, exif, own=image is not given)
        yield rgb


@contextlib.contextmanager
def opened_pixels(
    given: Path | bytes | Image.Image, *, exif: bool, max_pixels: int = MAX_PIXELS
) -> Iterator[Pixels]:
    """The same as an array (H, W, 3), uint8; `turbo_jpeg` decodes what it can."""
    with _held(given, max_pixels) as image:
        with _reasons(given):
            pixels = None
            if not isinstance(given, Image.Image):
                pixels = decoded_jpeg(image, given, exif=exif)
            if pixels is None:
                pixels = np.asarray(_decoded(image, exif, own=image is not given))
        yield pixels


@contextlib.contextmanager
def _held(given: Path | bytes | Image.Image, max_pixels: int) -> Iterator[Image.Image]:
    """The image before it is decoded, with memory for it held inside the block."""
    with contextlib.ExitStack() as held:
        held.enter_context(_PILLOW)
        with _reasons(given):
            if isinstance(given, Image.Image):
                image = given
            else:
                image = held.enter_context(_open(given, max_pixels))
            _require_size(image, max_pixels)
        needed = image.width * image.height * _BYTES_PER_PIXEL.get(image.format or "", _ELSE)
        held.enter_context(MEMORY.hold(needed))
        yield image


def _decoded(image: Image.Image, exif: bool, *, own: bool) -> Image.Image:
    image.load()
    return _rgb(_upright(image, own=own) if exif else image)


def check_file(given: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise OSError unless there is a file that begins and ends as an image of fair size does.

    A file's content will do as well. Pixels are decoded only where the end is not what the format
    asks for.
    """
    with _PILLOW, _reasons(given):
        with _open(given, max_pixels) as image:
            _require_size(image, max_pixels)
            with io.BytesIO(given) if isinstance(given, bytes) else given.open("rb") as file:
                complete = is_complete(image, file)
        if not complete:
            read_rgb(given, exif=False, max_pixels=max_pixels)


def _open(given: Path | bytes, max_pixels: int) -> Image.Image:
    size = len(given) if isinstance(given, bytes) else _file_size(given)
    if size == 0:
        raise OSError("the file is empty")
    if size > max_pixels * _ELSE + 2**24:  # some formats are read whole to be opened
        raise OSError(
            f"the file has {size:,} bytes, more than {max_pixels:,} pixels take; shrink "
            "it, or raise the maximum with --max-pixels"
        )
    return Image.open(io.BytesIO(given) if isinstance(given, bytes) else given, formats=FORMATS)


def _file_size(path: Path) -> int:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise OSError("a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    return found.st_size


def _require_size(image: Image.Image, max_pixels: int) -> None:
    """Raise OSError where decoding would take too much memory or time."""
    if image.format == "EPS":  # opened by a caller; loading it would start a program
        raise OSError("an EPS file is not read, since that starts a program; convert it to PNG")
    width, height = image.size
    tags = getattr(image, "tag_v2", {})  # a TIFF's tiles are decoded whole, however large
    for w, h in ((width, height), (int(tags.get(322, 0)), int(tags.get(323, 0)))):
        if w * h > max_pixels:
            raise OSError(
                f"{w:,} x {h:,} = {w * h:,} pixels, the maximum is {max_pixels:,}; shrink it, or "
                "raise the maximum with --max-pixels"
            )
        if max(w, h) > MAX_SIDE:
            raise OSError(
                f"{w:,} x {h:,} pixels; a side may have {MAX_SIDE:,} at most; crop or shrink it"
            )


def _upright(image: Image.Image, *, own: bool) -> Image.Image:
    """The image as its EXIF orientation says; turned in place where nobody else has it."""
    if not own:
        return ImageOps.exif_transpose(image)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = gray.to_8_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _reasons(given: Path | bytes | Image.Image) -> Iterator[None]:
    """Whatever a decoder raises on damaged bytes becomes an OSError with a reason."""
    try:
        yield
    except FileNotFoundError as error:
        path = given if isinstance(given, Path) else getattr(given, "filename", "")
        raise FileNotFoundError(f"no file at {path}") from error
    except UnidentifiedImageError as error:
        raise OSError(NO_IMAGE) from error
    except OSError as error:
        raise OSError(error.strerror or str(error)) from error
    except Exception as error:  # decoders raise ValueError, SyntaxError, struct.error and more
        raise OSError(str(error) or type(error).__name__) from error


class _Pillow:
    """Pillow's warnings and its own limit of size off, for as long as any thread is inside.

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
                self._off.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                Image.MAX_IMAGE_PIXELS = None
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._off.close()


_PILLOW = _Pillow()
