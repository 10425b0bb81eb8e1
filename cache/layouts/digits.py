"""The bundled dataset: handwritten digits that come with scikit-learn, no file on disk.

1,797 grey images of 8 x 8 pixels with values 0..16, the test part of Alpaydin and Kaynak's
"Optical Recognition of Handwritten Digits" (UCI, 1998).
"""

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.listing import SPLIT_RULE, Item, Listing, split_items
from cache.manifest import Manifest

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BYTES = 64  # of one image, 8 x 8


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the digits; neither argument matters."""
    del manifest, data_root
    _, labels = _arrays()
    items = [Item(f"digits/{row:04d}.png", int(label)) for row, label in enumerate(labels)]
    return Listing(Path(), CLASSNAMES, split_items(items), f"scikit-learn's digits, {SPLIT_RULE}")


def image(path: str) -> Image.Image:
    """The RGB image (8 x 8) that a path of the listing stands for, values 0..16 as 0..255."""
    pixels, _ = _arrays()
    row = int(Path(path).stem)
    return Image.fromarray(np.rint(pixels[row] / 16 * 255).astype(np.uint8)).convert("RGB")


@functools.cache
def _arrays() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    return digits.images, digits.target
