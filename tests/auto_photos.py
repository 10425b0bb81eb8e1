"""Folders of digits as photographs, which the bundled model knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cache.datasets.layouts import digits
from cache.datasets.manifest import load_manifest
from cache.images.decode import read_rgb
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.opened_adapter import open_adapter
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.pipeline import auto

SIDE = 32  # pixels
QUICK = ("zero-shot", "nearest-mean", "gda", "ridge")


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


def quickly(photos: Path, **options: Any) -> Outcome:
    """All of it beside the photos, with few methods and the bundled model."""
    home = photos.parent
    usual = {"model": "tiny", "methods": QUICK, "out": home / "out", "store": home / "features"}
    return auto(photos, **{**usual, **options})


def by_predictor(outcome: Outcome, paths: list[Path]) -> torch.Tensor:
    """(M, C) probabilities of files, by the saved adapter and the model."""
    predictor = open_adapter(load_adapter(outcome.adapter_path))
    pixels = [predictor.preprocess.center(read_rgb(path, exif=True)) for path in paths]
    return predictor.probabilities(predictor.features(torch.stack(pixels)))
