"""Images that cannot be read: how a store spells them, how they are listed, and the error."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from cache.errors import UserError, count, printable

# A path may hold ": ", so it ends at the last extension that a colon follows, if it has one.
_SPELLED = re.compile(r"(train|val|test)/(.*\.\w{1,5}|[^:]*): (.*)", re.DOTALL)


SHOWN = 20  # of many unreadable images, how many are listed


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


def listed(images: Sequence[Skipped]) -> Iterator[str]:
    """Yield a heading and a line for each of the images, for a terminal."""
    yield f"unreadable: {count(len(images), 'image')}"
    for split, path, reason in images[:SHOWN]:
        yield f"  {split} {printable(path)}: {reason}"
    if len(images) > SHOWN:
        yield f"  and {len(images) - SHOWN:,} more"


def cannot_read(images: Sequence[Skipped]) -> UserError:
    """The error for images that are not to be skipped; names the first."""
    split, path, reason = images[0]
    return UserError(
        f"{count(len(images), 'image')} cannot be read, the first {split} {printable(path)} "
        f"({reason}); fix or remove them, or leave them out with --skip-unreadable"
    )
