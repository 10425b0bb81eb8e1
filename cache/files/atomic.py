"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":  # where leftovers are not told from what is being written
    import fcntl


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place when the block ends well.

    The bytes are on the disk before the name is: a crash at any moment leaves the old file, or
    none. When the block raises, Ctrl-C included, the temporary file is removed and `path` is as it
    was. What a killed run has left of the same path is removed first: its writer holds a lock on
    it while it lives.

    The temporary file is made under a name that nobody can foresee, and never through a link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary, handle = _create(path)
    try:
        yield temporary
        flush(temporary, os.O_RDWR)
        temporary.replace(path)
        if os.name == "posix":  # a directory cannot be opened for flushing elsewhere
            flush(path.parent, os.O_RDONLY)
    finally:
        if handle is not None:
            os.close(handle)
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` whose writers are dead."""
    if sys.platform == "win32":
        return
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # in use, gone meanwhile, or no locks to be had here
            handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(handle)


def _create(path: Path) -> tuple[Path, int | None]:
    """A new file beside `path`, and an open handle that holds its lock where there are locks."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform == "win32":
            os.close(handle)
            return temporary, None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # being taken for a leftover
            os.close(handle)
            continue
        except OSError:  # no locks to be had here, and so nobody removes leftovers
            return temporary, handle
        if temporary.exists():  # else it was taken for a leftover before it was locked
            return temporary, handle
        os.close(handle)


def _escaped(name: str) -> str:
    """The name as a pattern that matches itself alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def flush(path: Path, mode: int) -> None:
    """Wait until a file or a folder is on the disk, opened by a mode of `os.open`."""
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
