"""Seconds that the stages of a run take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fewshot.automatic.encoding import Say

T = TypeVar("T")


class Stopwatch:
    """Adds up how long each stage takes.

    Args:
        say: Called with the name of a stage that shows no progress of its own.

    Attributes:
        seconds: Stage -> how long it took so far.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, stage: str, *, aloud: bool = False) -> Iterator[None]:
        """Count the block as part of a stage, and announce it where that is asked for."""
        if aloud:
            self._say(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def each(self, stage: str, items: Iterator[T]) -> Iterator[T]:
        """Yield the items, and count what it takes to make them."""
        while True:
            with self.timing(stage):
                item = next(items, None)
            if item is None:
                return
            yield item
