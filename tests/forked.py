"""Processes forked from that of the tests, which has loaded the libraries: each saves seconds."""

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")


def start(work: Callable[[], Any], *, out: Path | int = Path(os.devnull), err: Path) -> ForkProcess:
    """Start a process whose exit code is what the work returns.

    Args:
        work: Done in the process, in which Ctrl-C does what it does in a terminal.
        out: Where its stdout goes: a file, or the descriptor of a pipe.
        err: The file to which its stderr goes.
    """

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, to in ((1, out), (2, err)):
            os.dup2(to if isinstance(to, int) else os.open(to, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # open until the process ends
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.exit(work())

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def stop_once(
    process: ForkProcess,
    ready: Callable[[], bool],
    how: int,
    *,
    group: bool = False,
    after: float = 0.0,
) -> None:
    """Send a signal to a process, or to its group, once it is ready, and wait for its end."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.is_alive(), "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(after)
    assert process.pid is not None
    (os.killpg if group else os.kill)(process.pid, how)
    process.join(60)
