"""Gray images of more than 8 bits, or of floats, scaled to 8 bits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS = (8, 10, 12, 14, 16)  # what cameras, scanners and microscopes make
_BLOCK = 1 << 20  # pixels scaled at a time: an image is not held twice more in wider numbers


def to_8_bits(image: Image.Image) -> Image.Image:
    """The same picture in mode "L"; floats that reach beyond 1 come back as they are.

    Integers are scaled by the fewest bits that hold the brightest pixel, of 8, 10, 12, 14 and 16:
    a file of 16 bits is where 12-bit cameras keep their pixels, which would be all but black.
    """
    brightest = float(np.max([block.max() for _, block in _blocks(image)]))
    if image.mode == "F":
        if not brightest <= 1:
            return image
        return _mapped(image, lambda block: (block.clip(0, 1) * 255).round())
    white = next((2**bits - 1 for bits in _BITS if brightest < 2**bits), 65535)
    return _mapped(image, lambda block: (block.astype(np.int64) * 255 + white // 2) // white)


def _mapped(image: Image.Image, scale: Any) -> Image.Image:
    out = Image.new("L", image.size)
    for top, block in _blocks(image):
        out.paste(Image.fromarray(scale(block.clip(0, 65535)).astype(np.uint8)), (0, top))
    return out


def _blocks(image: Image.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """The first row and the pixels (rows, W) of each block of rows."""
    rows = max(1, _BLOCK // image.width)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        yield top, np.asarray(image.crop((0, top, image.width, bottom)))
