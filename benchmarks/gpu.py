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
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.extraction import draw
from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source
from cache.extraction import engines
from cache.extraction.shards import CENTER, Cropping, Encoded, Shard, Wanted, encode_shard
from cache.images.read_ahead import read_ahead
from cache.models.encoder import PRECISIONS, Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.tables import Number, Table
from fewshot.tables import text as table_text

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
SMALL_TEXT = TEXT | {"width": 32, "heads": 2, "layers": 1}
SMALL_VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
PHOTOS = 512  # files; encoding more images means these again
WARM, STEPS, IMAGES = 3, 10, 32  # steps before those that count, these, and images in each

Row = Callable[[Encoder], Number]


@dataclass(frozen=True)
class Photos:
    """Images to extract, and how."""

    source: Source
    paths: Sequence[str]
    batch_size: int
    workers: int
    processes: int

    @property
    def cropping(self) -> Cropping:
        """Center crops."""
        return Cropping(self.source, self.batch_size, (0.5, 1.0), 0)

    def shards(self) -> Iterator[Shard]:
        """All images, in shards of an eighth; `extract` has 512 in a shard."""
        size = max(1, len(self.paths) // 8)
        for number in range(0, len(self.paths), size):
            paths = self.paths[number : number + size]
            yield Shard(number, tuple(Wanted(path, (CENTER,)) for path in paths))


def write_model(folder: Path, vision: dict[str, Any], text: dict[str, Any], dim: int) -> str:
    """The name of a CLIP with random weights, which other processes can load as well."""
    torch.manual_seed(0)
    config = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(
        open_clip.CLIP(dim, vision, text).state_dict(), folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, until the device is done."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate(count: int, work: Callable[[], object], device: torch.device) -> Number:
    """The best of two rounds, in images per second, after a round that does not count."""
    return Number(count / min([seconds(work, device) for _ in range(3)][1:]), digits=0)


def forward(photos: Photos, encoder: Encoder, *, copy: bool) -> Number:
    """Images per second of the model alone."""
    size = encoder.preprocess.size
    where = "cpu" if copy else encoder.device
    shape = (photos.batch_size, 3, size, size)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8).to(where)
    rounds = max(1, len(photos.paths) // photos.batch_size)

    def work() -> None:
        for _ in range(rounds):
            encoder.encode_images(crops)

    return rate(rounds * photos.batch_size, work, encoder.device)


def decoding(photos: Photos, encoder: Encoder) -> Number:
    """Images per second of reading, decoding and resizing alone."""

    def crop(path: str) -> Tensor:
        with photos.source.opened(path) as image:
            return encoder.preprocess.center_crop(image)

    def work() -> None:
        for _ in read_ahead(
            photos.paths, crop, batch_size=photos.batch_size, workers=photos.workers
        ):
            pass

    return rate(len(photos.paths), work, encoder.device)


def extraction(photos: Photos, encoder: Encoder) -> Number:
    """Images per second of one process."""

    def work() -> None:
        for shard in photos.shards():
            encode_shard(photos.cropping, shard, encoder, workers=photos.workers)

    return rate(len(photos.paths), work, encoder.device)


def extraction_by_processes(photos: Photos, encoder: Encoder) -> Number:
    """Images per second of several processes, from the first shard each has done to the last."""
    done: list[tuple[float, int]] = []

    def keep(encoded: Encoded) -> None:
        done.append((time.perf_counter(), len(encoded.keys)))

    shards = itertools.chain(photos.shards(), photos.shards())
    engines.run(
        photos.cropping, shards, encoder, keep, lambda n: None, photos.workers,
        "process", photos.processes,
    )  # fmt: skip
    begun = done[photos.processes - 1][0]
    counted = sum(n for _, n in done[photos.processes :])
    return Number(counted / (done[-1][0] - begun), digits=0)


@dataclass(frozen=True)
class Training:
    """A method's step on so many classes."""

    method: EndToEnd
    n_classes: int
    plain: bool

    def learner(self, clip: Clip) -> Learner:
        """The method's, or the same with text from all 77 positions of every prompt."""
        names = [name.replace("_", " ") for name in IMAGENET_CLASSNAMES[: self.n_classes]]
        learner = self.method.attach(clip, names, ["a photo of a {}."])
        if self.plain:
            learner.text = self._plain_text(clip, learner, names)
        return learner

    def _plain_text(
        self, clip: Clip, learner: Learner, names: Sequence[str]
    ) -> Callable[[], Tensor]:
        model: Any = clip.model
        if not isinstance(self.method, CoOp):
            tokens = clip.tokens([f"a photo of a {name}." for name in names])
            return lambda: model.encode_text(tokens)
        context = learner.parameters["context"]
        tokens = clip.tokens([f"{'X ' * len(context)}{name}." for name in names])
        with torch.no_grad():
            rows, end = model.token_embedding(tokens), tokens.argmax(dim=1)
        before, behind = rows[:, :1], rows[:, 1 + len(context) :]

        def text() -> Tensor:
            x = torch.cat([before, context.expand(len(rows), -1, -1), behind], dim=1)
            x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
            x = model.ln_final(x)[torch.arange(len(x), device=x.device), end]
            return x @ model.text_projection  # type: ignore[no-any-return]

        return text

    def steps(self, encoder: Encoder) -> tuple[Number, Number, float]:
        """Steps per second (median), peak memory in GiB (NaN on a CPU), loss without dropout."""
        clip = Clip.of(encoder)
        learner = self.learner(clip)
        optimizer = self.method.optimizer(learner)
        device, generator = clip.device, torch.Generator().manual_seed(1)
        size = clip.preprocess.size
        shape = (IMAGES, encoder.dim) if learner.images is None else (IMAGES, 3, size, size)
        given = torch.randn(shape, generator=generator).to(device)
        labels = torch.arange(IMAGES, device=device) % 2
        scaler = torch.amp.GradScaler(device.type, enabled=clip.precision == "fp16")

        def loss() -> Tensor:
            with clip.autocast():
                features = given if learner.images is None else learner.images(given)
                return learner.loss(features, labels)[0]

        def step() -> None:
            optimizer.zero_grad()
            scaler.scale(loss()).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()

        with torch.no_grad():
            first = float(loss())
        for module in learner.modules:
            module.train()
        for _ in range(WARM):
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        times = [seconds(step, device) for _ in range(STEPS)]
        peak = float("nan")
        if device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated() - held) / 2**30
        return Number(1 / statistics.median(times)), Number(peak, digits=2), first


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
