"""Who encodes the shards: this process, several processes, or Ray actors.

All of them map the same function over the shards of new images, and one process keeps the results,
so all give the same store.
"""

import contextlib
import importlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any

import torch

from cache.encoder import Encoder
from cache.errors import UserError, printable, unknown
from cache.loading import load
from cache.orphans import end_with_parent
from cache.shards import Cropping, Encoded, Shard, encode_shard

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

    Raises:
        UserError: Ray is not installed or does not start, or the cluster is too small.
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
            run_in(shards, take, (cropping, EncoderSpec.of(encoder), workers, processes, each))
            return
    # One shard is the work of one process, and this one has the model; another takes 6 s to start.
    with _on_threads(each):
        for shard in shards:
            keep(encode_shard(cropping, shard, encoder, workers=workers, advance=advance))


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


Setup = tuple[Cropping, EncoderSpec, int, int, int]  # what a `Worker` is made of


class Worker:
    """The state of one process or actor: the crops to make and its own copy of the model."""

    def __init__(
        self, cropping: Cropping, spec: EncoderSpec, workers: int, processes: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.cropping, self.encoder = cropping, spec.load()
        self.workers = max(1, workers // processes)

    def encode(self, shard: Shard) -> Encoded:
        """Encode the shard."""
        return encode_shard(self.cropping, shard, self.encoder, workers=self.workers)


_worker: Worker  # of a worker process, made by its initializer


def _start(*arguments: Any) -> None:
    global _worker
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; shards are finished
    _worker = Worker(*arguments)


def _work(shard: Shard) -> Encoded:
    return _worker.encode(shard)


def _run_processes(shards: Iterator[Shard], take: Callable[[Encoded], None], setup: Setup) -> None:
    processes = setup[3]
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


def _run_ray(shards: Iterator[Shard], take: Callable[[Encoded], None], setup: Setup) -> None:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError("--engine ray needs Ray; pip install 'fewshot-clip[ray]'") from None
    cropping, spec, workers, processes, each = setup
    started = not ray.is_initialized()
    if started:
        _start_ray(ray)
    try:
        gpus = 1 if spec.device == "cuda" else 0
        cpus = 0.5  # Ray hangs without a word when actors hold every CPU
        _check_room(ray.cluster_resources(), {"CPU": cpus * processes, "GPU": gpus * processes})
        resources = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 2, "max_task_retries": 2}
        remote = ray.remote(**resources)(Worker)
        arguments = (ray.put(cropping), spec, workers, processes, each)
        pool = ray.util.ActorPool([remote.remote(*arguments) for _ in range(processes)])
        for shard in shards:
            while not pool.has_free():
                take(pool.get_next_unordered())
            pool.submit(lambda actor, shard: actor.encode.remote(shard), shard)
        while pool.has_next():
            take(pool.get_next_unordered())
    except UserError as error:  # wrapped by Ray, with the actor's traceback in its text
        raise getattr(error, "cause", error) from None
    finally:
        if started:
            ray.shutdown()


def _start_ray(ray: Any) -> None:
    """Connect to the cluster, or start Ray on this machine, for which it gives itself 30 s."""
    try:
        ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:  # of as many types as reasons
        reason = printable((str(error).strip() or repr(error)).splitlines()[0])
        raise UserError(
            f"Ray does not start here ({reason:.150}); run `ray start --head` first, which may "
            "take its time on a busy machine, and then this again, or use --engine process"
        ) from error


def _check_room(have: dict[str, Any], need: dict[str, float]) -> None:
    for kind, wanted in need.items():
        if wanted > have.get(kind, 0):
            raise UserError(
                f"--engine ray needs {wanted:g} {kind} and the cluster has {have.get(kind, 0):g}; "
                "ask for fewer --processes"
            )
