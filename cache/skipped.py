"""An image that was left out of a store, and how the store spells it."""

import re
from typing import NamedTuple, Self

from cache.errors import printable

# A path may hold ": ", so it ends at the last extension that a colon follows, if it has one.
_SPELLED = re.compile(r"(train|val|test)/(.*\.\w{1,5}|[^:]*): (.*)", re.DOTALL)


class Skipped(NamedTuple):
    """An image that could not be read.

    Attributes:
        split: train, val or test.
        path: Relative to the dataset's root, POSIX.
        reason: Why not.
    """

    split: str
    path: str
    reason: str

    def __str__(self) -> str:
        """One line, as a store lists it."""
        return f"{self.split}/{printable(self.path)}: {self.reason}"

    @classmethod
    def parse(cls, line: str) -> Self:
        """The image of such a line.

        Raises:
            ValueError: It is no such line.
        """
        found = _SPELLED.fullmatch(line)
        if found is None:
            raise ValueError(f"expected split/path: reason, got {line!r}")
        return cls(*found.groups())
