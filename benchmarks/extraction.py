"""Extraction from JPEG files against the bare forward pass on tensors already in memory.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.extraction [--images 384] [--batch-size 8]

with that policy because the command line sets it.

Both run the same ViT-B/32 (random weights) at the same batch size, in turns, on the same images of
500 x 375 pixels; extraction also reads, decodes, and resizes. Prints the ratio of
the two rates, per round and best against best.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from cache.datasets.resolving import resolve_folder
from cache.extract import default_workers
from cache.extraction.shards import CENTER, Cropping, Shard, Wanted, encode_shard
from cache.models.encoder import Encoder, wrap


def draw(folder: Path, count: int) -> None:
    """Smooth color fields with some grain: JPEG files as big as photographs of that size."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
        path = folder / ("ab"[i % 2]) / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(encoder: Encoder, batches: list[torch.Tensor]) -> None:
    """The forward pass and nothing else."""
    for batch in batches:
        encoder.encode_images(batch)


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = open_clip.create_model("ViT-B-32")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    encoder = wrap(model, tokenizer, torch.device("cpu"), name="random", arch="ViT-B-32")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "photos"
        draw(folder, 2 * options.images)
        source = resolve_folder(folder)
        items = source.splits["train"][: options.images]
        size = sum((folder / item.path).stat().st_size for item in items) / len(items)
        print(f"{len(items)} JPEG files of {size / 1e3:.0f} kB, batch {options.batch_size}")
        pixels = torch.stack([encoder.preprocess.center(source.read(i.path)) for i in items])
        batches = list(torch.split(pixels, options.batch_size))
        shard = Shard(0, tuple(Wanted(item.path, (CENTER,)) for item in items))
        cropping = Cropping(source, options.batch_size, (0.5, 1.0), 0)
        workers = default_workers()
        bare(encoder, batches[:1])
        rates = []
        for round_ in range(options.rounds):
            alone = len(items) / seconds(lambda: bare(encoder, batches))
            whole = len(items) / seconds(
                lambda: encode_shard(cropping, shard, encoder, workers=workers)
            )
            rates.append((alone, whole))
            print(
                f"round {round_ + 1}: forward {alone:.1f}/s, extraction {whole:.1f}/s, "
                f"ratio {whole / alone:.3f}"
            )
        best = max(w for _, w in rates) / max(a for a, _ in rates)
        print(f"best against best: {best:.3f}")


if __name__ == "__main__":
    main()
