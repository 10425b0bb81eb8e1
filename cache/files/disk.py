"""A file for HDF5 to write to that survives a full disk."""

import io
from pathlib import Path
from typing import Any

from cache.errors import UserError


class DiskFile(io.FileIO):
    """A file that keeps the first failed write to itself and ignores all that follow it.

    HDF5 crashes the whole process when it has to close a file that it could not write, which is
    what a full disk comes to. So HDF5 hears that all is well, and `report` raises the error
    once it has let go.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Claim to have written everything."""
        left = memoryview(data)
        try:
            while self.error is None and len(left):
                left = left[super().write(left) :]
        except BaseException as error:  # Ctrl-C too: HDF5 would take it for a failed write
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Claim to have the new size."""
        try:
            if self.error is None:
                return super().truncate(size)
        except BaseException as error:
            self.error = error
        return size or 0

    def report(self, path: Path) -> None:
        """Raise what went wrong, if anything did.

        Args:
            path: The file that was to be made, for the message.

        Raises:
            UserError: The disk is full, or over quota.
        """
        if isinstance(self.error, OSError):
            raise UserError(
                f"cannot write {path}: {self.error.strerror}; it is as it was before, make room "
                "and run again"
            ) from self.error
        if self.error is not None:
            raise self.error
