"""ViT-B/16 on a GPU: extraction against the bare forward pass, training against 77 positions.

    python -m benchmarks.gpu [--images 4096] [--classes 100 397] [--processes 4]

Weights are random. Photographs are JPEG files of 500 x 375 pixels, drawn into a temporary folder
and encoded several times over, so reading them is free and decoding is not. `forward pass` has its
pixels on the GPU, `copy and forward pass` in memory; `decoding` runs no model; `extraction` is all
of it, by one process or by several with the same number of threads in all. A training step is
forward, backward and the optimizer's, on 32 images: the method with its own dropout, and the same
on all 77 positions of every prompt. Memory is the peak of a step above what the model holds. Before
that, the two losses are compared without dropout. Prints one table, a column per precision.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from benchmarks.extraction import draw
from benchmarks.gpu_extraction import (
    Photos,
    decoding,
    extraction,
    extraction_by_processes,
    forward,
)
from benchmarks.gpu_training import Training
from cache.datasets.resolving import resolve_folder
from cache.models.encoder import PRECISIONS, Encoder
from cache.models.loading import load
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.tables import Number, Table
from fewshot.tables import text as table_text

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
SMALL_TEXT = TEXT | {"width": 32, "heads": 2, "layers": 1}
SMALL_VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
PHOTOS = 512  # files; encoding more images means these again


def write_model(folder: Path, vision: dict[str, Any], text: dict[str, Any], dim: int) -> str:
    """The name of a CLIP with random weights, which other processes can load as well."""
    torch.manual_seed(0)
    config = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(
        open_clip.CLIP(dim, vision, text).state_dict(), folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def training_rows(encoders: Sequence[Encoder], classes: Sequence[int]) -> Iterator[list[Any]]:
    """Yield rows of steps per second and memory: at 77 positions, and ours."""
    for method, n_classes in itertools.product((CLIPLoRA(), CoOp()), classes):
        what = f"{method.name}, {n_classes} classes"
        ways = [
            [Training(method, n_classes, plain).steps(encoder) for encoder in encoders]
            for plain in (True, False)
        ]
        for way, name in zip(ways, ("77 positions", "ours"), strict=True):
            yield [f"{what}, {name}: steps/s", *(steps for steps, _, _ in way)]
            yield [f"{what}, {name}: GiB", *(memory for _, memory, _ in way)]
        differences = [abs(ours[2] - plain[2]) for plain, ours in zip(*ways, strict=True)]
        yield [f"{what}: losses differ by", *(f"{x:.0e}" for x in differences)]


def told(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """The rows; each is on stderr as soon as it is measured, in case the run is cut off."""
    found = []
    for row in rows:
        print(*row, sep="  ", file=sys.stderr, flush=True)
        found.append(row)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 397])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 4)
    parser.add_argument("--processes", type=int, default=4, help="0 leaves that row out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model: does it run?")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --device cpu --tiny is for a look at the program")
        return
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        model, photos_at = home / "model", home / "photos"
        model.mkdir()
        vision, language, dim = (
            (SMALL_VISION, SMALL_TEXT, 16) if options.tiny else (VISION, TEXT, 512)
        )
        name = write_model(model, vision, language, dim)
        draw(photos_at, min(PHOTOS, 2 * options.images))
        source = resolve_folder(photos_at)
        files = itertools.cycle([item.path for item in source.splits["train"]])
        photos = Photos(
            source, list(itertools.islice(files, options.images)), options.batch_size,
            options.workers, options.processes,
        )  # fmt: skip
        encoders = [load(name, device=options.device, precision=p) for p in PRECISIONS]
        device = encoders[0].device
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        threads = f"{options.workers} threads"
        kinds: list[tuple[str, Callable[[Encoder], Number]]] = [
            ("forward pass: images/s", lambda e: forward(photos, e, copy=False)),
            ("copy and forward pass: images/s", lambda e: forward(photos, e, copy=True)),
            (f"extraction, {threads}: images/s", lambda e: extraction(photos, e)),
        ]
        alone = decoding(photos, encoders[0])
        parts: list[Iterable[list[Any]]] = [
            [[f"decoding, {threads}: images/s", *[alone] * len(encoders)]],
            ([what, *map(measure, encoders)] for what, measure in kinds),
            training_rows(encoders, options.classes),
        ]
        if options.processes:
            what = f"extraction, {options.processes} processes, {threads}: images/s"
            several = (extraction_by_processes(photos, encoder) for encoder in encoders)
            parts.append([what, *numbers] for numbers in [several])
        rows = told(itertools.chain.from_iterable(parts))
        kind = "a small model" if options.tiny else "ViT-B/16"
        title = f"{kind} on {where}, torch {torch.__version__}, batches of {options.batch_size}"
        print(table_text(Table(title, ("", *PRECISIONS), rows)))


if __name__ == "__main__":
    main()
