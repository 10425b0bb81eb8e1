"""Images per second of extraction and of its parts; `benchmarks.gpu` prints them."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.device_time import seconds
from cache.datasets.source import Source
from cache.extraction import engines
from cache.extraction.shards import CENTER, Cropping, Encoded, Shard, Wanted, encode_shard
from cache.images.read_ahead import read_ahead
from cache.models.encoder import Encoder
from fewshot.tables import Number


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
