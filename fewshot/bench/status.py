"""How far a benchmark is: cells done, the cell at hand, and the time left by kinds of cells."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from cache import progress
from cache.errors import count
from fewshot.bench.combination import Cell
from fewshot.run import Run

Kind = tuple[object, ...]


class Pace:
    """The time that the cells left will take, from that of the finished ones most like them.

    Most like is a cell of the same method, dataset and shots; where none is finished, of the
    same method and shots, of the same method, of any.
    """

    def __init__(self, cells: Iterable[Cell], jobs: int) -> None:
        self.jobs = jobs
        self.remaining = Counter(_kinds(cell.run)[0] for cell in cells)
        self.total: dict[Kind, tuple[float, int]] = {}

    def learn(self, run: Run, seconds: float) -> None:
        """The run took so long."""
        for kind in _kinds(run):
            total, n = self.total.get(kind, (0.0, 0))
            self.total[kind] = total + seconds, n + 1

    def finish(self, cell: Cell) -> None:
        """The cell is not among those left any more."""
        self.remaining[_kinds(cell.run)[0]] -= 1

    def left(self) -> float | None:
        """Seconds; None before anything is known."""
        if not self.total:
            return None
        return sum(n * self._estimate(kind) for kind, n in self.remaining.items()) / self.jobs

    def _estimate(self, kind: Kind) -> float:
        method, _, shots = kind
        for like in (kind, (method, shots), (method,), ()):
            if like in self.total:
                total, n = self.total[like]
                return total / n
        return 0.0


def _kinds(run: Run) -> tuple[Kind, ...]:
    """From the closest kind to the kind that all are of."""
    method, shots = run.method, run.shots
    return (method, run.fitted_on, shots), (method, shots), (method,), ()


class Display:
    """Progress on stderr: a bar in a terminal, else a plain line now and then.

    Args:
        total: Cells in all.
        done: Those done before.
        pace: Estimates the time left.
    """

    def __init__(self, total: int, done: int, pace: Pace) -> None:
        self.total, self.done, self.pace = total, done, pace
        self.current = ""
        self.last = time.monotonic()
        self.bar: Any = None

    @contextlib.contextmanager
    def shown(self) -> Iterator["Display"]:
        """The display, while it is to be seen."""
        if not sys.stderr.isatty():
            yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True)) as self.bar:
            self.bar.add_task("", total=self.total, completed=self.done)
            yield self

    def started(self, cell: Cell) -> None:
        """The cell is at hand."""
        self.current = cell.run.label
        self._show()

    def note(self, how_far: str) -> None:
        """How far the cell at hand is."""
        self._show(how_far)

    def finished(self, cell: Cell) -> None:
        """The cell is done, well or not."""
        self.done += 1
        self.pace.finish(cell)
        self._show()

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self.bar is None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        else:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self, how_far: str = "") -> None:
        left = self.pace.left()
        words = [] if left is None else [f"{progress.clock(left)} left"]
        words += [self.current, how_far] if how_far else [self.current]
        if self.done == self.total:
            words = []
        if self.bar is not None:
            self.bar.update(0, completed=self.done, description=", ".join(words))
            return
        now = time.monotonic()
        finished = self.done == self.total
        if now - self.last >= progress.SECONDS_BETWEEN_LINES or finished:
            self.last = now
            self.say(", ".join([f"{self.done}/{count(self.total, 'cell')}", *words]))
