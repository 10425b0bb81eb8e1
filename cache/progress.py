"""Progress on stderr: a bar in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from cache.errors import printable

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """A function of the number of items just finished, and a note on how it goes."""

    def __call__(self, n: int, note: str = "", /) -> None:
        """Show it."""
        ...


@contextlib.contextmanager
def progress(
    what: str, total: int, done: int = 0, *, costs: Sequence[float] | None = None
) -> Iterator[Advance]:
    """Yield a function to call with the number of items just finished.

    Shows how many of `total` there are, the rate, and the time left.

    Args:
        what: The name of the work.
        total: Number of items.
        done: Items that were there before; they count as finished but not toward the rate.
        costs: The cost of each item in any unit, where they differ: the time left goes by costs.
    """
    what = printable(what)
    if sys.stderr.isatty():
        with _bar(what, total, _Pace(total, done, costs)) as advance:
            yield advance
    else:
        yield _lines(what, _Pace(total, done, costs))


@contextlib.contextmanager
def _bar(what: str, total: int, pace: "_Pace") -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total, completed=pace.done, pace="")

        def advance(n: int, note: str = "", /) -> None:
            bars.update(task, advance=n, pace=f"{pace.after(n)} {printable(note)}")

        yield advance


def _lines(what: str, pace: "_Pace") -> Advance:
    last = time.monotonic()

    def advance(n: int, note: str = "", /) -> None:
        nonlocal last
        text = pace.after(n)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or pace.done == pace.total:
            last = now
            line = f"{what} {pace.done}/{pace.total} {text} {printable(note)}".rstrip()
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    return advance


class _Pace:
    """Rate since the start, and the time the rest will take at it."""

    def __init__(self, total: int, done: int, costs: Sequence[float] | None) -> None:
        self.total, self.done, self.before = total, done, done
        self.costs = costs
        self.start = time.monotonic()

    def after(self, n: int) -> str:
        self.done += n
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.before) / seconds
        spent, ahead = self._cost(self.before, self.done), self._cost(self.done, self.total)
        left = seconds * ahead / max(spent, 1e-9)
        return f"{rate:.1f}/s, {clock(left)} left" if self.done < self.total else f"{rate:.1f}/s"

    def _cost(self, start: int, stop: int) -> float:
        return stop - start if self.costs is None else sum(self.costs[start:stop])


def clock(seconds: float) -> str:
    """Seconds as 12s, 3m20s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
