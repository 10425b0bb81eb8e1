"""Who encodes the shards: this process, several processes, or Ray actors.

All of them map the same function over the shards of new images, and one process keeps the results,
so all give the same store.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from cache.errors import UserError, unknown
from cache.extraction import ray_cluster
from cache.extraction.orphans import end_with_parent
from cache.extraction.provenance import computed_on
from cache.extraction.shards import Cropping, Encoded, Shard, encode_shard
from cache.extraction.shared_features import SharedFeatures
from cache.models.encoder import Encoder
from cache.models.loading import load

ENGINES = ("serial", "process", "ray")


@dataclass(frozen=True)
class EncoderSpec:
    """How another process gets the same encoder."""

    name: str
    device: str
    precision: str
    resize_mode: str
    fast_images: bool

    @classmethod
    def of(cls, encoder: Encoder) -> "EncoderSpec":
        """The spec of an encoder that was loaded by name."""
        name = str(encoder.identity["name"])
        crops = encoder.preprocess
        return cls(name, encoder.device.type, encoder.precision, crops.resize_mode, crops.fast)

    def load(self) -> Encoder:
        """The encoder, in whatever process this runs."""
        style = {"shortest": "shorter", "squash": "squash"}.get(self.resize_mode)
        return load(
            self.name, device=self.device, precision=self.precision, resize=style,
            fast_images=self.fast_images,
        )  # fmt: skip


def run(
    cropping: Cropping,
    shards: Iterator[Shard],
    encoder: Encoder,
    keep: Callable[[Encoded], None],
    advance: Callable[[int], None],
    workers: int,
    engine: str = "serial",
    processes: int = 1,
    shared: SharedFeatures | None = None,
) -> None:
    """Encode these shards.

    Args:
        cropping: How their images become crops.
        shards: Those that are missing, taken as they are needed.
        encoder: The model; other processes load their own by its name.
        keep: Called in this process with each finished shard, in any order.
        advance: Called with numbers of images finished.
        workers: Decoding threads, of all processes together.
        engine: "serial", "process" or "ray".
        processes: Worker processes or actors.
        shared: Where whoever encodes a shard puts what was made of it.

    Raises:
        UserError: Ray is not installed or does not start; or the cluster is too small, of other
            machines, or lost several workers at one shard.
    """

    def take(encoded: Encoded) -> None:
        keep(encoded)
        advance(len(encoded.contents))

    each = threads(engine, processes)
    if engine != "serial":
        first = list(islice(shards, 2))
        shards = chain(first, shards)
        if len(first) > 1:
            run_in = {"process": _run_processes, "ray": _run_ray}[engine]
            readers = max(1, workers // processes)
            machine = computed_on(encoder, each)
            spec = EncoderSpec.of(encoder)
            run_in(shards, take, Setup(cropping, spec, processes, readers, each, machine, shared))
            return
    # One shard is the work of one process, and this one has the model; another takes 6 s to start.
    with _on_threads(each):
        for shard in shards:
            encoded = encode_shard(cropping, shard, encoder, workers=workers, advance=advance)
            if shared is not None:
                shared.put(cropping, shard, encoded)
            keep(encoded)


@contextlib.contextmanager
def _on_threads(n: int) -> Iterator[None]:
    """Let torch run on so many threads for a while, for the bits of a feature depend on it."""
    before = torch.get_num_threads()
    if n != before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if n != before:
            torch.set_num_threads(before)


def threads(engine: str, processes: int) -> int:
    """The threads of each process that encodes.

    Raises:
        UserError: Unknown engine.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    return max(1, torch.get_num_threads() // (1 if engine == "serial" else processes))


class Setup(NamedTuple):
    """All that a `Worker` is made of.

    Attributes:
        cropping: How images become crops.
        spec: The model.
        processes: Workers.
        readers: Decoding threads of each.
        threads: Threads of each that the model runs on.
        machine: What last bits of features depend on, in the process that asks.
        shared: Where each shard is put as well.
    """

    cropping: Cropping
    spec: EncoderSpec
    processes: int
    readers: int
    threads: int
    machine: dict[str, str]
    shared: SharedFeatures | None


class Worker:
    """One process or actor, with its own copy of the model; made of the fields of a `Setup`."""

    def __init__(self, *setup: Any) -> None:
        self.setup = Setup(*setup)
        self.encoder: Encoder | None = None

    def prepare(self) -> None:
        """Load the model."""
        self._model()

    def _model(self) -> Encoder:
        """The model, loaded by the first call.

        Raises:
            UserError: It cannot be loaded here, or this machine computes otherwise.
        """
        if self.encoder is None:
            setup = self.setup
            torch.set_num_threads(setup.threads)
            encoder = setup.spec.load()
            here = computed_on(encoder, setup.threads)
            if here != setup.machine:
                raise UserError(
                    f"a worker computes on {here['processor']}, and this machine on "
                    f"{setup.machine['processor']}, so features would differ in their last bits; "
                    "run the command on a node of the kind that encodes"
                )
            self.encoder = encoder
        return self.encoder

    def work(self, shard: Shard) -> Encoded:
        """Encode the shard, and share what was made of it."""
        cropping, shared = self.setup.cropping, self.setup.shared
        encoder = self._model()  # again, where this one is in place of one that was lost
        encoded = encode_shard(cropping, shard, encoder, workers=self.setup.readers)
        if shared is not None:
            shared.put(cropping, shard, encoded)
        return encoded


_worker: Worker  # of a worker process, made by its initializer


def _start(*arguments: Any) -> None:
    global _worker
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; shards are finished
    _worker = Worker(*arguments)


def _work(shard: Shard) -> Encoded:
    return _worker.work(shard)


def _run_processes(shards: Iterator[Shard], take: Callable[[Encoded], None], setup: Setup) -> None:
    processes = setup.processes
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, setup) as pool:
        try:
            at_work: set[Future[Encoded]] = set()
            for shard in shards:
                at_work.add(pool.submit(_work, shard))
                if len(at_work) > processes:  # one waits, so that nobody else does
                    done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
                    for future in done:
                        take(future.result())
            for future in as_completed(at_work):
                take(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_ray(shards: Iterator[Shard], take: Callable[[Encoded], None], setup: "Setup") -> None:
    with ray_cluster.cluster() as ray:
        cropping, spec, *others = setup
        gpus = 1 if spec.device == "cuda" else 0
        arguments = (ray.put(cropping), spec, *others)
        workers = ray_cluster.workers(ray, Worker, arguments, setup.processes, gpus)
        for shard, encoded in ray_cluster.spread(ray, workers, shards):
            if isinstance(encoded, ray_cluster.WorkerLostError):
                raise UserError(
                    f"{ray_cluster.TRIES} workers were lost at the images from "
                    f"{shard.images[0].path} on, the last so: {encoded}; give workers more memory, "
                    "or leave the image out that ends them, and run the same command again"
                )
            take(encoded)
