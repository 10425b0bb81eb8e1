"""Commands that are stopped at a chosen moment and typed again."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.extraction import new_images
from cli import main
from tests.forked import start

ROWS = 4  # images in a shard, so that there are several


@dataclass(frozen=True)
class Job:
    """A command, and when it is stopped.

    Attributes:
        home: Where it runs; `first.txt` and `again.txt` there get the stderr of its two runs.
        arguments: After `fewshot`.
        at: "module:qualified.name" of a function; nowhere without it.
        call: At which of its calls the process stops.
        about: Counts only calls among whose arguments this text is.
        how: By which signal.
        after: Seconds after which the process is stopped, wherever it is; never without them.
    """

    home: str
    arguments: tuple[str, ...]
    at: str = ""
    call: int = 1
    about: str = ""
    how: int = signal.SIGKILL
    after: float = 0.0


def run(job: Job) -> tuple[list[int | None], float]:
    """Exit codes of a job's runs, and the seconds that these took.

    An undisturbed job has one run. The code of a run that a signal ended is negative.
    """
    names = ("first.txt", "again.txt") if job.at or job.after else ("first.txt",)
    begin = time.monotonic()
    return [_run(job, name) for name in names], time.monotonic() - begin


def _run(job: Job, errors: str) -> int | None:
    first = errors == "first.txt"

    def work() -> int:
        os.chdir(job.home)
        new_images.ROWS = ROWS
        if job.at and first:
            _stop_at(job)
        return main(list(job.arguments))

    process = start(work, err=Path(job.home) / errors)
    if job.after and first:
        time.sleep(job.after)
        assert process.pid is not None
        os.kill(process.pid, job.how)  # ended or not, it is still there to be waited for
    process.join()
    return process.exitcode


def _stop_at(job: Job) -> None:
    module, _, name = job.at.partition(":")
    *path, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    function: Callable[..., Any] = getattr(owner, last)
    calls = 0

    def stopping(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += job.about in str(arguments)
        if calls == job.call and job.about in str(arguments):
            os.kill(os.getpid(), job.how)
        return function(*arguments, **options)

    setattr(owner, last, stopping)
