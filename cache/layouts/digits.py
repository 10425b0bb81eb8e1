"""The bundled dataset: handwritten digits that come with scikit-learn, no file on disk.

1,797 gray images of 8 x 8 pixels with values 0..16, the test part of Alpaydin and Kaynak's
"Optical Recognition of Handwritten Digits" (UCI, 1998).
"""

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.listing import Item, Listing
from cache.manifest_file import Manifest

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BYTES = 64  # of one image, 8 x 8


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the digits; neither argument matters."""
    del manifest, data_root
    _, labels = _arrays()
    splits = {
        split: tuple(Item(f"digits/{row:04d}.png", int(labels[row])) for row in sorted(rows))
        for split, rows in _split(labels).items()
    }
    return Listing(Path(), CLASSNAMES, splits, "scikit-learn's digits, stratified 50/20/30")


def _split(labels: NDArray[np.int64]) -> dict[str, list[int]]:
    """Row numbers of each split; 50, 20 and 30 % of each digit, rounded.

    Not the rule for data that nobody has split: the recipe of the bundled CLIP was judged on the
    val images of this very split, so only its test images are unseen by anyone.
    """
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    rng = np.random.default_rng(0)
    for digit in range(len(CLASSNAMES)):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        first, second = round(0.5 * len(rows)), round(0.7 * len(rows))
        for split, part in zip(splits, np.split(rows, [first, second]), strict=True):
            splits[split] += part.tolist()
    return splits


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
