"""What is encoded after a change to a folder of photos, and what that costs.

    python -m benchmarks.encode_once [--model tiny] [--photos 200] [--folder EUROSAT --moved 10]

First on photos that are drawn: after each change, the number of images and prompts encoded, CPU and
wall seconds of `extract`, and whether the store has the bytes of a fresh run. Then, where a folder
of class folders is given, on that: a full run against one after some images were moved to other
classes. The folder itself stays as it is.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source, pooled
from cache.extract import default_workers, extract
from cache.extraction.prompt_features import encode_prompts
from cache.extraction.shards import Encoded, encode_shard
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import prompt_sets

AGE = 10**9  # seconds since the epoch: files of a moment ago are read again


@dataclass
class Counted:
    """An encoder's calls, counted."""

    images: int = 0
    prompts: int = 0


def draw(folder: Path, n: int) -> None:
    """Colored noise, as `n` JPEG files of 500 x 375 pixels in four classes."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        path = folder / ("cat", "dog", "fox", "owl")[i % 4] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        os.utime(path, (AGE, AGE))


class Runs:
    """Extractions of one model that share kept features."""

    def __init__(self, encoder: Encoder, home: Path) -> None:
        self.encoder, self.home, self.counted = encoder, home, Counted()
        self._count()

    def _count(self) -> None:
        """Have what reaches the encoder counted, without the filling of batches."""

        def shard(*arguments: Any, **options: Any) -> Encoded:
            made = encode_shard(*arguments, **options)
            self.counted.images += len(made.contents)
            return made

        def prompts(new: list[str], encoder: Encoder) -> Any:
            self.counted.prompts += len(new)
            return encode_prompts(new, encoder)

        mock.patch("cache.extraction.engines.encode_shard", shard).start()
        mock.patch("cache.extraction.prompt_features.encode_prompts", prompts).start()

    def run(self, name: str, source: Source, templates: Sequence[str], *, fresh: bool) -> None:
        """Extract, and print a row; `fresh` for a comparison with a run that knows nothing."""
        recipe = Recipe(prompt_sets(source.classnames, templates))
        store, bank = self.home / "s" / "kept.h5", self.home / "s" / ".bank.sqlite"

        def into(path: Path, kept: Path | None) -> tuple[float, float]:
            self.counted = Counted()
            cpu, wall = time.process_time(), time.perf_counter()
            extract(
                source, self.encoder, recipe, path, bank=kept, if_exists="overwrite",
                workers=default_workers(),
            )  # fmt: skip
            return time.process_time() - cpu, time.perf_counter() - wall

        cpu, wall = into(store, bank)
        new = self.counted
        same = ""
        if fresh:
            into(self.home / "fresh.h5", None)
            same = str(store.read_bytes() == (self.home / "fresh.h5").read_bytes())
        print(
            f"{name:<26} {new.images:>7,} {new.prompts:>8,} {cpu:>8.2f} {wall:>8.2f}  {same}",
            flush=True,
        )


def six_changes(runs: Runs, photos: Path) -> None:
    """Print a row for each."""
    template = ["a photo of a {}."]

    def row(name: str, change: Callable[[], object], templates: list[str] = template) -> None:
        change()
        runs.run(name, resolve_folder(photos), templates, fresh=True)

    row("first run", lambda: None)
    row("a moved label", lambda: (photos / "cat/00000.jpg").rename(photos / "dog/moved.jpg"))
    row("a renamed class", lambda: (photos / "fox").rename(photos / "wolf"))
    row("a new photo", lambda: Image.effect_noise((500, 375), 90).save(photos / "owl" / "new.jpg"))
    row("a new template", lambda: None, [*template, "a drawing of a {}."])
    runs.run("another split", pooled(resolve_folder(photos)), template, fresh=True)
    row("a removed file", lambda: (photos / "owl" / "00003.jpg").unlink())


def moved_labels(runs: Runs, folder: Path, n: int) -> None:
    """Print a row for the whole folder, and one after `n` of its images went to other classes."""
    copy = runs.home / folder.name
    shutil.copytree(folder, copy, copy_function=os.link)
    classes = sorted(path for path in copy.iterdir() if path.is_dir())
    template = ["a photo of a {}."]
    runs.run("full run", resolve_folder(copy), template, fresh=False)
    for i in range(n):
        a, b = classes[i % len(classes)], classes[(i + 1) % len(classes)]
        image = sorted(a.iterdir())[i]
        image.rename(b / f"moved-{i}{image.suffix}")
    runs.run(f"{n} moved labels", resolve_folder(copy), template, fresh=False)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--moved", type=int, default=10)
    options = parser.parse_args()
    encoder = load(options.model, device="cpu")
    beside = None if options.folder is None else options.folder.parent  # links need one disk
    with tempfile.TemporaryDirectory(dir=beside) as home:
        print(f"{'':<26} {'images':>7} {'prompts':>8} {'CPU s':>8} {'wall s':>8}  bytes equal")
        draw(Path(home) / "photos", options.photos)
        six_changes(Runs(encoder, Path(home) / "a"), Path(home) / "photos")
        if options.folder is not None:
            moved_labels(Runs(encoder, Path(home) / "b"), options.folder, options.moved)


if __name__ == "__main__":
    main()
