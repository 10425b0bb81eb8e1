"""Folders that appear whole or not at all, and take an earlier one's place in one step.

Each is made beside its place as `.NAME.XXXXXXXX.tmp`, with eight random hex digits. Its maker keeps
it locked, and the system drops the lock when the maker ends, however it ends. So one whose lock is
free was left by a process that was killed, and whoever makes NAME next removes it.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from cache.files.atomic import flush

if sys.platform != "win32":
    import fcntl

_HERE = -100  # AT_FDCWD of Linux: paths are relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux: the two paths change places


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder beside `path`, which takes its place when the block ends well.

    On Linux the two change places in one step, so at any moment `path` is the old folder or the
    new one. Elsewhere the old one is renamed first, and is removed once the new one is there. When
    the block raises, `path` is as it was.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # else what was left may be all there is of it
        remove_left_folders(path)
    temporary, handle = _create(path)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                flush(file, os.O_RDWR)
        _move_onto(temporary, path)
        if os.name == "posix":
            flush(path.parent, os.O_RDONLY)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # by now the old folder, if there was one
        if handle is not None:
            os.close(handle)
    remove_left_folders(path)


def remove_left_folders(path: Path) -> None:
    """Remove temporary folders of `path` whose makers are dead."""
    if os.name != "posix":  # no locks on folders: what is left looks like what is being made
        return
    own = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for left in path.parent.iterdir():
        if own.fullmatch(left.name):
            with contextlib.suppress(OSError):  # in use, gone meanwhile, or no locks to be had here
                handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
                finally:
                    os.close(handle)


def _create(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, and an open handle that holds its lock where there are locks."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir()
        if os.name != "posix":
            return temporary, None
        with contextlib.suppress(FileNotFoundError):  # removed as a leftover before it was locked
            handle = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(OSError):  # no locks to be had, and so none removes leftovers
                fcntl.flock(handle, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, handle
            os.close(handle)


def _move_onto(folder: Path, path: Path) -> None:
    """Rename the folder to `path`; an old `path` gets the folder's name, or is removed."""
    if not path.exists():
        folder.rename(path)
    elif not _exchange(folder, path):
        old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        path.rename(old)
        folder.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system or the disk cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
