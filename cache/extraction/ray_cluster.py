"""Tasks on a Ray cluster: workers that hold a state, of which one that is lost costs its task."""

import contextlib
import importlib
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from cache.errors import UserError, printable

Task = TypeVar("Task")
CPUS = 0.5  # of a worker; Ray hangs without a word when workers hold every CPU
TRIES = (
    3  # of a task whose worker is lost; a node may go, but what kills a worker thrice is at fault
)


PATIENCE = 30  # seconds for a cluster to answer


class WorkerLostError(Exception):
    """A task's worker was lost each time it was tried."""


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Ray, connected to a cluster that runs, or started on this machine for as long as the block.

    Raises:
        UserError: Ray is not installed, or does not start.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError("--engine ray needs Ray; pip install 'fewshot-clip[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def workers(
    ray: Any, kind: type[Any], arguments: Sequence[Any], count: int, gpus: int = 0
) -> list[Any]:
    """Workers of a class, some of which may start later, when the cluster has grown.

    Args:
        ray: Of `cluster`.
        kind: The class; `prepare` makes a worker ready, and `work` does a task. One that Ray has
            put in the place of one that was lost gets a task without `prepare`.
        arguments: Of its constructor.
        count: How many.
        gpus: GPUs of each.

    Raises:
        UserError: The cluster has no room for one of them.
    """
    _require_room(ray.cluster_resources(), {"CPU": CPUS, "GPU": gpus})
    remote = ray.remote(
        num_cpus=CPUS, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES - 1,
        scheduling_strategy="SPREAD",
    )(kind)  # fmt: skip
    return [remote.remote(*arguments) for _ in range(count)]


def spread(ray: Any, workers: Sequence[Any], tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
    """Each task with what a worker made of it, or a `WorkerLostError`, in the order of finishing.

    A worker has one task at a time, and none before it has started. Where it is lost, Ray starts
    another, wherever there is room, and that task is done again.

    Args:
        ray: Of `cluster`.
        workers: Of `workers`.
        tasks: Taken as they are needed.

    Raises:
        UserError: A worker raised it.
    """
    remaining = iter(tasks)
    starting = {worker.prepare.remote(): worker for worker in workers}
    busy: dict[Any, tuple[Any, Task]] = {}
    idle: list[Any] = []
    try:
        while True:
            while idle:
                try:
                    task = next(remaining)
                except StopIteration:
                    starting, idle = {}, []
                    break
                worker = idle.pop()
                busy[worker.work.remote(task)] = worker, task
            if not busy and not starting:
                return
            (ready, *_), _ = ray.wait([*busy, *starting])
            if ready in starting:
                ray.get(ready)
                idle.append(starting.pop(ready))
                continue
            worker, task = busy.pop(ready)
            idle.append(worker)
            try:
                made = ray.get(ready)
            except ray.exceptions.RayActorError as error:
                made = WorkerLostError(_line(error))
            yield task, made
    except UserError as error:  # wrapped by Ray, with the worker's traceback in its text
        raise getattr(error, "cause", error) from None
    except ray.exceptions.RayActorError as error:  # before it had a task
        raise UserError(
            f"a worker of the cluster does not start ({_last_line(error)}); each node needs the "
            "same version of fewshot-clip and, for a benchmark, the folders of this one"
        ) from error


def _start(ray: Any) -> None:
    """Connect to the cluster, or start Ray on this machine, for which it gives itself 30 s."""
    address = os.environ.get("RAY_ADDRESS", "")
    if found := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):
        try:  # for Ray tries for more than 3 minutes, and says so in lines of its own
            socket.create_connection((found[1], int(found[2])), timeout=PATIENCE).close()
        except OSError as error:
            raise UserError(
                f"no Ray answers at RAY_ADDRESS={address} ({error.strerror or error}); start it "
                "there with `ray start --head`, or unset RAY_ADDRESS"
            ) from error
    try:
        ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:  # of as many types as reasons
        raise UserError(
            f"Ray does not start here ({_line(error)}); run `ray start --head` first, which may "
            "take its time on a busy machine, and then this again, or use --engine process"
        ) from error


def _require_room(have: Mapping[str, Any], need: Mapping[str, float]) -> None:
    for kind, wanted in need.items():
        if wanted > have.get(kind, 0):
            raise UserError(
                f"a worker of --engine ray needs {wanted:g} {kind} and the cluster has "
                f"{have.get(kind, 0):g}; add a node"
            )


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return printable((str(error).strip() or repr(error)).splitlines()[0])[:150]


def _last_line(error: Exception) -> str:
    """The last line, which of a traceback is the error itself."""
    return printable((str(error).strip() or repr(error)).splitlines()[-1])[:150]
