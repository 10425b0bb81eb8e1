"""Ctrl-C kept back to the end of a step, where a checkpoint can be written."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interrupted_later() -> Iterator[Callable[[], bool]]:
    """Keep the first Ctrl-C back while the block runs; a second one interrupts it at once.

    Yields a function that is True once Ctrl-C was pressed: the block then comes to an end and
    raises KeyboardInterrupt itself. In other threads than the main one, and where something else
    listens to Ctrl-C, nothing changes.
    """
    before, pressed = signal.getsignal(signal.SIGINT), threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or before is not signal.default_int_handler:
        yield pressed.is_set
        return

    def keep(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, keep)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
