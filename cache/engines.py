"""Who encodes the shards: this process, several processes, or Ray actors.

All of them map the same function over the missing shards of a plan, so all give the same store.
"""

import importlib
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from cache.encoder import Encoder
from cache.errors import UserError, unknown
from cache.loading import load
from cache.orphans import end_with_parent
from cache.shards import Shard, ShardPlan, encode_shard

ENGINES = ("serial", "process", "ray")


@dataclass(frozen=True)
class EncoderSpec:
    """How another process gets the same encoder."""

    name: str
    device: str
    precision: str
    resize_mode: str

    @classmethod
    def of(cls, encoder: Encoder) -> "EncoderSpec":
        """The spec of an encoder that was loaded by name."""
        name = str(encoder.identity["name"])
        return cls(name, encoder.device.type, encoder.precision, encoder.preprocess.resize_mode)

    def load(self) -> Encoder:
        """The encoder, in whatever process this runs."""
        style = {"shortest": "shorter", "squash": "squash"}.get(self.resize_mode)
        return load(self.name, device=self.device, precision=self.precision, resize=style)


def run(
    plan: ShardPlan,
    shards: list[Shard],
    encoder: Encoder,
    advance: Callable[[int], None],
    workers: int,
    engine: str = "serial",
    processes: int = 1,
) -> None:
    """Encode these shards.

    Args:
        plan: What they belong to.
        shards: Those that are missing.
        encoder: The model; other processes load their own by its name.
        advance: Called with numbers of images finished.
        workers: Decoding threads, of all processes together.
        engine: "serial", "process" or "ray".
        processes: Worker processes or actors.

    Raises:
        UserError: Unknown engine, Ray is not installed, or the cluster is too small.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "serial":
        for shard in shards:
            encode_shard(plan, shard, encoder, workers=workers, advance=advance)
        return
    run_in = {"process": _run_processes, "ray": _run_ray}[engine]
    threads = max(1, torch.get_num_threads() // processes)
    run_in(shards, advance, (plan, EncoderSpec.of(encoder), workers, processes, threads))


Setup = tuple[ShardPlan, EncoderSpec, int, int, int]  # what a `Worker` is made of


class Worker:
    """The state of one process or actor: the plan and its own copy of the model."""

    def __init__(
        self, plan: ShardPlan, spec: EncoderSpec, workers: int, processes: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.plan, self.encoder = plan, spec.load()
        self.workers = max(1, workers // processes)

    def encode(self, shard: Shard) -> int:
        """Encode the shard; its number of images."""
        encode_shard(self.plan, shard, self.encoder, workers=self.workers)
        return len(shard.rows)


_worker: Worker  # of a worker process, made by its initializer


def _start(*arguments: Any) -> None:
    global _worker
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; shards are finished
    _worker = Worker(*arguments)


def _work(shard: Shard) -> int:
    return _worker.encode(shard)


def _run_processes(shards: list[Shard], advance: Callable[[int], None], setup: Setup) -> None:
    processes = setup[3]
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, setup) as pool:
        try:
            for future in as_completed([pool.submit(_work, shard) for shard in shards]):
                advance(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_ray(shards: list[Shard], advance: Callable[[int], None], setup: Setup) -> None:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError("--engine ray needs Ray; pip install 'fewshot-clip[ray]'") from None
    plan, spec, workers, processes, threads = setup
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        gpus = 1 if spec.device == "cuda" else 0
        cpus = 0.5  # Ray hangs without a word when actors hold every CPU
        _check_room(ray.cluster_resources(), {"CPU": cpus * processes, "GPU": gpus * processes})
        resources = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 2, "max_task_retries": 2}
        remote = ray.remote(**resources)(Worker)
        arguments = (ray.put(plan), spec, workers, processes, threads)
        pool = ray.util.ActorPool([remote.remote(*arguments) for _ in range(processes)])
        for count in pool.map_unordered(lambda actor, shard: actor.encode.remote(shard), shards):
            advance(count)
    except UserError as error:  # wrapped by Ray, with the actor's traceback in its text
        raise getattr(error, "cause", error) from None
    finally:
        if started:
            ray.shutdown()


def _check_room(have: dict[str, Any], need: dict[str, float]) -> None:
    for kind, wanted in need.items():
        if wanted > have.get(kind, 0):
            raise UserError(
                f"--engine ray needs {wanted:g} {kind} and the cluster has {have.get(kind, 0):g}; "
                "ask for fewer --processes"
            )
