"""Size and time of a file, by which a changed one is known."""

from pathlib import Path
from typing import NamedTuple, Self


class Stamp(NamedTuple):
    """A file's size in bytes and time of modification in ns: equal ones mean an unchanged file.

    A time of 0 is unknown: what has it is read each time.
    """

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The stamp of a file now; OSError where there is none."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)
