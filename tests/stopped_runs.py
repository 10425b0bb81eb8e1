"""Commands that are stopped at a chosen moment and typed again.

Each runs in a process forked from one that has loaded all libraries, which saves seconds a time:
`python -m tests.stopped_runs JOBS`, JOBS being JSON: a list of `Job`s as objects. Prints what `run`
returns.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

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


def run(jobs: list[Job]) -> tuple[list[list[int]], list[float]]:
    """Exit codes of each job's runs, and the seconds that these took.

    An undisturbed job has one run. The code of a run that a signal ended is negative.
    """
    codes, seconds = [], []
    for job in jobs:
        names = ("first.txt", "again.txt") if job.at or job.after else ("first.txt",)
        start = time.monotonic()
        codes.append([_forked(job, name) for name in names])
        seconds.append(time.monotonic() - start)
    return codes, seconds


def as_json(jobs: Iterable[Job]) -> str:
    """What this program takes."""
    return json.dumps([asdict(job) for job in jobs])


def _forked(job: Job, errors: str) -> int:
    process = os.fork()
    if process:
        if job.after and errors == "first.txt":
            time.sleep(job.after)
            os.kill(process, job.how)  # ended or not, it is still there to be waited for
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(job.home)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        if job.at and errors == "first.txt":
            _stop_at(job)
        import cli

        code = cli.main(list(job.arguments))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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


def _main(text: str) -> None:
    import torch

    from cache import loading, new_images

    for heavy in ("open_clip", "h5py", "fewshot.automatic.pipeline"):
        importlib.import_module(heavy)
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    new_images.ROWS = ROWS
    loading.load("tiny", device="cpu")
    values: list[Mapping[str, Any]] = json.loads(text)
    codes = run([Job(**value) for value in values])
    sys.stdout.write(json.dumps(codes) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
