"""How large an image may be, and a process's memory for decoded images, shared by its threads."""

import contextlib
import threading
from collections.abc import Iterator

MAX_PIXELS = 120_000_000  # cameras make 102 million; a gigabyte while it is decoded
_BYTES = 2**31  # two images of the maximum size; photographs of 12 megapixels by twenty threads


class DecodingMemory:
    """A number of bytes that threads hold parts of; one that needs more than is left waits.

    What would not fit even alone is let in when nobody else is: a maximum for one image is another
    matter. No thread may hold twice, or two such threads could wait for one another.

    Attributes:
        held: Bytes that are held now.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes inside the block, and wait for them before it."""
        with self._changed:
            self._changed.wait_for(lambda: not self.held or self.held + size <= self._size)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()


MEMORY = DecodingMemory(_BYTES)
