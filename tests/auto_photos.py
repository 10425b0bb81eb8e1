"""Folders of digits as photographs, which the bundled model knows."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from cache.datasets.layouts import digits
from cache.datasets.manifest import load_manifest

SIDE = 32  # pixels


def digit(name: str, i: int, split: str = "train") -> Image.Image:
    """The i-th digit of that name."""
    listing = digits.read(load_manifest("digits"), Path())
    label = listing.classnames.index(name)
    rows = [item.path for item in listing.splits[split] if item.label == label]
    return digits.image(rows[i]).resize((SIDE, SIDE))


def draw_digits(
    folder: Path, counts: Mapping[str, int], *, first: int = 0, split: str = "train"
) -> Path:
    """A class folder for each name, of so many digits from the `first` on."""
    for name, n in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + n):
            digit(name, i, split).save(folder / name / f"{i:03d}.png")
    return folder
