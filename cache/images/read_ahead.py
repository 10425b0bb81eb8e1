"""Images read by threads, some batches ahead of the model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from torch import Tensor

from cache.errors import UserError, printable

Item = TypeVar("Item")
AHEAD = 2  # batches being read while the model works on one
ERRORS = (OSError, ValueError, MemoryError)  # the last two of a sliver, resized


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Tensor], *, batch_size: int, workers: int
) -> Iterator[list[tuple[Item, Tensor | str]]]:
    """Batches in order: each item with its pixels, or with the reason why it cannot be read.

    No more than three batches are held: the one handed out and two that are read meanwhile.
    Pillow lets go of the interpreter while it works, and threads need nothing pickled.

    Args:
        items: What to read, taken as it is needed.
        read: Makes the pixels of an item; what it raises as of `ERRORS` becomes the reason,
            but a `UserError`, which ends the run.
        batch_size: Items in a batch.
        workers: Threads.
    """

    def attempt(item: Item) -> Tensor | str:
        try:
            return read(item)
        except UserError:  # nothing is to be read any more
            raise
        except ERRORS as error:
            return reason(error)

    todo = iter(items)
    ahead: deque[list[tuple[Item, Future[Tensor | str]]]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        while True:
            batch = [
                (item, pool.submit(attempt, item)) for item in islice(todo, max(1, batch_size))
            ]
            if batch:
                ahead.append(batch)
            if not ahead:
                break
            if not batch or len(ahead) > AHEAD:
                yield [(item, future.result()) for item, future in ahead.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def reason(error: BaseException) -> str:
    """Why an image cannot be read, on one line."""
    return printable(str(error)) or type(error).__name__
