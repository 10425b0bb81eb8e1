"""Progress on stderr: a bar in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from cache.errors import printable

SECONDS_BETWEEN_LINES = 10.0
_showing = False  # work within work is silent: a terminal has one bar at a time


class Advance(Protocol):
    """A function of the number of items just finished, and a note on how it goes."""

    def __call__(self, n: int, note: str = "", /) -> None:
        """Show it."""
        ...


@contextlib.contextmanager
def progress(
    what: str,
    total: int,
    done: int = 0,
    *,
    costs: Sequence[float] | None = None,
    patience: float = 0.0,
) -> Iterator[Advance]:
    """Yield a function to call with the number of items just finished.

    Shows how many of `total` there are, the rate, and the time left. Within another progress it
    shows nothing.

    Args:
        what: The name of the work.
        total: Number of items.
        done: Items that were there before; they count as finished but not toward the rate.
        costs: The cost of each item in any unit, where they differ: the time left goes by costs.
        patience: Seconds in which nothing is shown, for work that is mostly done by then.
    """
    if _showing:
        yield lambda _n, _note="": None
        return
    what, pace = printable(what), _Pace(total, done, costs)
    with silent_within():
        if sys.stderr.isatty():
            with _bar(what, pace, patience) as advance:
                yield advance
        else:
            yield _lines(what, pace, patience)


@contextlib.contextmanager
def silent_within() -> Iterator[None]:
    """Show no progress of what is done within: for work that shows its own."""
    global _showing
    before, _showing = _showing, True
    try:
        yield
    finally:
        _showing = before


@contextlib.contextmanager
def _bar(what: str, pace: "_Pace", patience: float) -> Iterator[Advance]:
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
    bars = Progress(*columns, console=Console(stderr=True))
    task = bars.add_task(what, total=pace.total, completed=pace.done, pace="")
    if not patience:
        bars.start()

    def advance(n: int, note: str = "", /) -> None:
        bars.update(task, advance=n, pace=f"{pace.after(n)} {printable(note)}")
        if not bars.live.is_started and pace.seconds >= patience:
            bars.start()

    try:
        yield advance
    finally:
        if bars.live.is_started:
            bars.stop()


def _lines(what: str, pace: "_Pace", patience: float) -> Advance:
    last = time.monotonic()
    said = False  # that it is finished: who has nothing left to do may still report

    def advance(n: int, note: str = "", /) -> None:
        nonlocal last, said
        text = pace.after(n)
        now = time.monotonic()
        finished = pace.done == pace.total and pace.seconds >= patience and not said
        said = said or finished
        if now - last >= SECONDS_BETWEEN_LINES or finished:
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
        self.seconds = 0.0  # up to the last item

    def after(self, n: int) -> str:
        self.done += n
        self.seconds = time.monotonic() - self.start
        seconds = max(self.seconds, 1e-9)
        rate = (self.done - self.before) / seconds
        if not rate:
            return ""
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
