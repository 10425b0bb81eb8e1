"""From a JPEG file to a crop of 224 pixels: Pillow, as by default, against `extract --fast-images`.

    OMP_NUM_THREADS=1 python -m benchmarks.decoding [--rounds 5]

The photographs are parts of the two that scikit-learn ships, side by side until they fill the
size. Prints for each size the milliseconds of CPU time per photograph, made in turns, the ratio to
Pillow's, how far pixels differ, and how many cores feed a GPU that encodes 5,000 images a second;
and of how far features of the bundled model move.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn.functional import normalize

from cache.images import decode, turbo_jpeg
from cache.images.preprocessing import Preprocess
from cache.models.loading import load

SIZES = {
    "500 x 375": (375, 500, 32),
    "1600 x 1200": (1200, 1600, 8),
    "4000 x 3000": (3000, 4000, 2),
}
GPU = 5000  # images a second

Crop = Callable[[Path], NDArray[np.uint8]]


def crops_of(exact: Preprocess) -> dict[str, Crop]:
    """The ways to make a crop, Pillow's first."""
    fast = replace(exact, interpolation=f"fast-{exact.interpolation}")

    def pillow(path: Path) -> NDArray[np.uint8]:
        with decode.opened(path, exif=True) as image:
            return exact.center_crop(image).numpy()

    def torchs(path: Path) -> NDArray[np.uint8]:
        with _no_turbo(), decode.opened_pixels(path, exif=True) as pixels:
            return fast.center_crop(pixels).numpy()

    def both(path: Path) -> NDArray[np.uint8]:
        with decode.opened_pixels(path, exif=True) as pixels:
            return fast.center_crop(pixels).numpy()

    return {"Pillow": pillow, "--fast-images, no extra": torchs, "--fast-images": both}


def _no_turbo() -> AbstractContextManager[object]:
    return patch.object(turbo_jpeg, "_turbo", lambda: None)


def photographs(height: int, width: int, count: int, folder: Path) -> list[Path]:
    """Files of that size, each beginning elsewhere in the two photographs."""
    china, flower = load_sample_images().images
    row = np.concatenate([china, flower], axis=1)
    tall, wide = -(-2 * height // row.shape[0]), -(-2 * width // row.shape[1])
    field = np.tile(row, (tall, wide, 1))
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        top, left = rng.integers(0, (field.shape[0] - height, field.shape[1] - width))
        path = folder / f"{height}-{i}.jpg"
        Image.fromarray(field[top : top + height, left : left + width]).save(path, quality=90)
        paths.append(path)
    return paths


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    tiny = load("tiny", device="cpu")
    large = replace(tiny.preprocess, size=224)
    with tempfile.TemporaryDirectory() as folder:
        for name, (height, width, count) in SIZES.items():
            paths = photographs(height, width, count, Path(folder))
            ways = crops_of(large)
            spent = {way: float("inf") for way in ways}
            for _ in range(rounds):
                for way, crop in ways.items():
                    start = time.thread_time()
                    for path in paths:
                        crop(path)
                    spent[way] = min(spent[way], (time.thread_time() - start) / count)
            exact, *others = (np.stack([c(p) for p in paths]).astype(int) for c in ways.values())
            differ = abs(others[-1] - exact)
            for way, cost in spent.items():
                ratio, cores = spent["Pillow"] / cost, GPU * cost
                print(
                    f"{name}  {way:24s} {1000 * cost:6.1f} ms  {ratio:4.1f} x  {cores:5.0f} cores"
                )
            print(
                f"{name}  pixels that differ: {100 * (differ > 0).mean():.2f} %, by {differ.max()}"
            )
            small = crops_of(tiny.preprocess)
            before, after = (
                normalize(tiny.encode_images(_stacked(small[way], paths)))
                for way in ("Pillow", "--fast-images")
            )
            moved = 1 - (before.double() * after.double()).sum(dim=1)
            print(f"{name}  features of tiny move by a {moved.max():.1e} of 1 - cosine at most")


def _stacked(crop: Crop, paths: list[Path]) -> torch.Tensor:
    return torch.from_numpy(np.stack([crop(path) for path in paths]))


if __name__ == "__main__":
    main()
