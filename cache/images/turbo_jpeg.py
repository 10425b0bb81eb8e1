"""JPEG decoded into an array of bytes, by the library that Pillow uses too but without its detours.

Pillow takes the file in pieces and keeps four bytes of each pixel; that takes up to twice as long.
"""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3)
# EXIF orientation -> quarter turns to the left, and whether the result is then mirrored.
TURNS = {
    2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True),
    8: (1, False),
}  # fmt: skip


def decoded_jpeg(image: Image.Image, given: Path | bytes, *, exif: bool) -> Pixels | None:
    """The pixels of a color JPEG, of the same bits as Pillow's; None where Pillow has to decode it.

    That is where the extra `fast` is missing, and where the file is damaged, for Pillow says how.

    Args:
        image: The file as Pillow opens it, not decoded.
        given: The file, or its content.
        exif: Turn it upright as its EXIF orientation says.
    """
    if (image.format, image.mode) != ("JPEG", "RGB"):
        return None
    turbo = _turbo()
    if turbo is None:
        return None
    content = given if isinstance(given, bytes) else given.read_bytes()
    try:
        pixels: Pixels = turbo.decode_jpeg(content, colorspace="RGB")
    except ValueError:
        return None
    return _turned(pixels, image.getexif().get(0x0112, 1)) if exif else pixels


@functools.cache
def _turbo() -> ModuleType | None:
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    import simplejpeg

    return simplejpeg  # type: ignore[no-any-return]  # it has no types


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    turns, mirrored = TURNS.get(orientation, (0, False))
    upright = np.rot90(pixels, turns)
    return upright[:, ::-1] if mirrored else upright
