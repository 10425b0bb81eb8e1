"""Tasks in one process, several, or on a cluster; one that kills its process costs only itself."""

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from cache.extraction.orphans import end_with_parent
from cache.extraction.ray_cluster import WorkerLostError, cluster, spread, workers

Task = TypeVar("Task")
Done = TypeVar("Done")

# What numpy's, scikit-learn's and torch's libraries read when they are loaded.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerDiedError(Exception):
    """A task ended its process: killed, as when memory runs out, or crashed."""


def each(
    function: Callable[[Task], Done],
    tasks: Sequence[Task],
    jobs: int,
    started: Callable[[Task], None],
    engine: str = "process",
    gpus: int = 0,
) -> Iterator[tuple[Task, Done | WorkerDiedError]]:
    """Each task with what the function made of it, in the order of finishing.

    One job is done in this process. Further ones are processes that are spawned, share the cores,
    and leave Ctrl-C to their parent; they end when the iterator does, or when their parent is no
    more. Those of Ray may be anywhere on its cluster, and repeat a task whose process was lost.

    Args:
        function: One that can be pickled and raises nothing.
        tasks: What can be pickled.
        jobs: How many at once.
        started: Called with a task when it begins.
        engine: "process" or "ray".
        gpus: GPUs of each job, which Ray is asked for.

    Raises:
        UserError: Ray is not there, or its cluster has no room.
    """
    if engine == "ray":
        yield from _each_on_ray(function, tasks, jobs, started, gpus)
        return
    if jobs == 1:
        for task in tasks:
            started(task)
            yield task, function(task)
        return
    jobs = max(1, min(jobs, len(tasks)))
    waiting = deque(tasks)
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, Task]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                worker = idle.pop() if idle else _Worker(function, jobs)
                busy[worker.pipe] = worker, waiting.popleft()
                started(busy[worker.pipe][1])
                with contextlib.suppress(OSError):  # one that died meanwhile: found below
                    worker.pipe.send(busy[worker.pipe][1])
            for pipe in wait(list(busy)):
                worker, task = busy[pipe]  # type: ignore[index]  # none but connections are waited for
                try:
                    done = worker.pipe.recv()
                except (EOFError, OSError):
                    done = WorkerDiedError(worker.epitaph())
                    worker.end()
                else:
                    idle.append(worker)
                del busy[worker.pipe]
                yield task, done
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.end()


class _RayWorker:
    """A worker of a Ray cluster, which sees the folder that the benchmark was started in."""

    def __init__(self, function: Callable[[Any], Any], folder: Path) -> None:
        os.chdir(folder)  # paths of stores and results may be relative to it
        self._function = function

    def prepare(self) -> None:
        """Nothing is to be prepared."""

    def work(self, task: Any) -> Any:
        """Return what the function makes of the task."""
        return self._function(task)


def _each_on_ray(
    function: Callable[[Task], Done],
    tasks: Sequence[Task],
    jobs: int,
    started: Callable[[Task], None],
    gpus: int,
) -> Iterator[tuple[Task, Done | WorkerDiedError]]:
    def announced() -> Iterator[Task]:
        for task in tasks:
            started(task)
            yield task

    if not tasks:
        return
    with cluster() as ray:
        pool = workers(ray, _RayWorker, (function, Path.cwd()), min(jobs, len(tasks)), gpus)
        for task, done in spread(ray, pool, announced()):
            lost = isinstance(done, WorkerLostError)
            yield task, WorkerDiedError(f"its worker was lost: {done}") if lost else done


class _Worker:
    """A process at the other end of a pipe."""

    def __init__(self, function: Callable[[Any], Any], jobs: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        with _deaf_to_interrupts(), _threads(max(1, _cores() // jobs)):
            self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()

    def epitaph(self) -> str:
        """How the process, which is dead, came to be so."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"its process ended with code {code}"
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + ("; out of memory?" if code == -9 else "")


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """A worker's life: tasks in, what the function makes of them out."""
    end_with_parent()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            pipe.send(function(pipe.recv()))


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process started within never hears of Ctrl-C, not even while it loads its modules."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """A process started within uses so many threads, unless the environment says otherwise."""
    unset = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(count)))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


def _cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on some systems
    return len(affinity(0)) if affinity else os.cpu_count() or 1
