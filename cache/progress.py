"""Progress on stderr: a bar in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from cache.errors import printable

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """A function of the number of items just finished, and a note on how it goes."""

    def __call__(self, n: int, note: str = "", /) -> None:
        """Show it."""
        ...


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A function to call with the number of items just finished.

    Shows how many of `total` there are, the rate, and the time left. `done` items were there
    before; they count as finished but not toward the rate.
    """
    what = printable(what)
    if sys.stderr.isatty():
        with _bar(what, total, done) as advance:
            yield advance
    else:
        yield _lines(what, total, done)


@contextlib.contextmanager
def _bar(what: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total, completed=done, pace="")
        pace = _Pace(total, done)

        def advance(n: int, note: str = "", /) -> None:
            bars.update(task, advance=n, pace=f"{pace.after(n)} {printable(note)}")

        yield advance


def _lines(what: str, total: int, done: int) -> Advance:
    pace = _Pace(total, done)
    last = time.monotonic()

    def advance(n: int, note: str = "", /) -> None:
        nonlocal last
        text = pace.after(n)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or pace.done == total:
            last = now
            sys.stderr.write(f"{what} {pace.done}/{total} {text} {printable(note)}".rstrip() + "\n")
            sys.stderr.flush()

    return advance


class _Pace:
    """Rate since the start, and the time the rest will take at it."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.before = total, done, done
        self.start = time.monotonic()

    def after(self, n: int) -> str:
        self.done += n
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.before) / seconds
        left = (self.total - self.done) / max(rate, 1e-9)
        return f"{rate:.1f}/s, {clock(left)} left" if self.done < self.total else f"{rate:.1f}/s"


def clock(seconds: float) -> str:
    """Seconds as 12s, 3m20s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
