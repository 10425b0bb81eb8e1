"""The bundled dataset: handwritten digits that come with scikit-learn, no file on disk.

1,797 gray images of 8 x 8 pixels with values 0..16, the test part of Alpaydin and Kaynak's
"Optical Recognition of Handwritten Digits" (UCI, 1998).
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.datasets.listing import Item, Listing
from cache.datasets.manifest_file import Manifest
from cache.datasets.reader import Stamp

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
    return Listing(
        Path(),
        CLASSNAMES,
        splits,
        "scikit-learn's digits, stratified 50/20/30",
        reader=DigitImages(),
    )


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


class DigitImages:
    """Reads digits: each is its pixels, and has no file."""

    def place(self, path: str) -> str:
        """The item's path, for there is no other place."""
        return path

    def stamp(self, path: str) -> Stamp:
        """Its size in scikit-learn's array, at an unknown time."""
        del path
        return Stamp(BYTES, 0)

    def content(self, path: str) -> Image.Image:
        """The RGB image (8 x 8)."""
        return image(path)

    def check(self, path: str, max_pixels: int) -> None:
        """Accept every digit."""

    def changed_since(self, moment: int, paths: Iterable[str]) -> list[str]:
        """Return no path, for an installed package does not change."""
        del moment, paths
        return []


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
