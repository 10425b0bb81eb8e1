"""Checks of the folders: can they be written, is there room, what did killed runs leave."""

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from cache.errors import UserError
from cache.location import find_stores
from cache.store import FeatureStore
from fewshot.doctor.finding import Finding
from fewshot.parts.memory import GIB
from fewshot.synthesis.kept_files import find_kept, is_stale, require_whole

ROOM = GIB  # bytes; a store of ImageNet takes more, one of any other of the usual datasets less
QUIET = 3600  # seconds without a write, after which nobody is taken to be writing
MOUNTS = Path("/proc/mounts")
NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "afs",
    "9p",
    "lustre",
    "beegfs",
    "gpfs",
    "ceph",
    "gluster",
    "sshfs",
)


def stores_folder(root: Path) -> Iterator[Finding]:
    """Where stores are made."""
    yield writable("store root", root, "set $FEWSHOT_STORE to a folder that can be, or --store")
    yield from _locks("store root", root)


def data_folder(root: Path) -> Iterator[Finding]:
    """Where datasets lie, which are only read."""
    if not root.exists():
        found = f"{root}, which is not there; --data-root and $FEWSHOT_DATA say where datasets lie"
        yield Finding("data root", "ok", found)
    elif not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        fix = "set $FEWSHOT_DATA to a folder of datasets, or --data-root"
        yield Finding("data root", "problem", f"{root} is no folder that can be read", fix)
    else:
        folders = sum(path.is_dir() for path in root.iterdir())
        yield Finding("data root", "ok", f"{root}; folders in it: {folders}")


def runs_folder(root: Path) -> Iterator[Finding]:
    """Where results are appended."""
    yield writable("runs", root, "work in another folder, or give --results")
    yield from _locks("runs", root)


def writable(name: str, folder: Path, fix: str) -> Finding:
    """Check that the folder, or the one it would be made in, is writable and has room."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"{folder} cannot be written", fix)
    free = shutil.disk_usage(there).free
    missing = "" if there == folder else ", to be made"
    found = f"{folder}{missing}; {free / GIB:,.1f} GiB free"
    if free < ROOM:
        return Finding(name, "warning", found, f"make room, or {fix}")
    return Finding(name, "ok", found)


def _locks(name: str, folder: Path) -> Iterator[Finding]:
    """On a network disk, whether it has the locks that keep two writers apart."""
    kind = _file_system(folder)
    if not kind.removeprefix("fuse.").startswith(NETWORK):
        return
    if not folder.is_dir():
        found = f"{folder} will lie on a network disk ({kind}), whose locks cannot be tried yet"
        yield Finding(name, "ok", found)
        return
    trial = folder / ".doctor.lock"
    try:
        with FileLock(trial, timeout=0):
            pass
    except (OSError, NotImplementedError) as error:
        yield Finding(
            name,
            "problem",
            f"{folder} lies on a network disk ({kind}) without file locks: {error}",
            "use a folder on a local disk",
        )
    else:
        yield Finding(name, "ok", f"the network disk ({kind}) has file locks")
    finally:
        trial.unlink(missing_ok=True)


def _file_system(folder: Path) -> str:
    """The kind of the file system that the folder lies on; empty where the system has no list."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    path = folder.resolve()
    # Of two mounts on one point the later hides the earlier.
    on = [(len(Path(point).parts), i, kind) for i, (point, kind) in enumerate(mounts)
          if path.is_relative_to(point.replace("\\040", " "))]  # fmt: skip
    return max(on)[2] if on else ""


def leftovers(root: Path) -> Iterator[Finding]:
    """Look in the store root for files of killed runs.

    Their lock files are no matter: a lock is its holder's, and free once that is gone.
    """
    found = False
    for path in sorted([*root.glob("*/.*.tmp"), *root.glob("*/.*.parts")]):
        files = [path, *path.rglob("*")]
        if time.time() - max(file.lstat().st_mtime for file in files) < QUIET:
            continue  # somebody may be writing it
        found = True
        size = sum(file.lstat().st_size for file in files if file.is_file()) / 2**20
        what = "half an extraction" if path.is_dir() else "a file that was never finished"
        again = "run the same extraction to its end, or " if path.is_dir() else ""
        yield Finding(
            "leftovers",
            "warning",
            f"{path}: {what}, {size:,.1f} MiB",
            f"{again}rm -r {shlex.quote(str(path))}",
        )
    if not found:
        yield Finding("leftovers", "ok", "none of killed runs in the store root")


def stores(root: Path) -> Iterator[Finding]:
    """Check that every store in the root can be opened."""
    opened = 0
    for path in find_stores(root):
        try:
            FeatureStore.open(path)
            opened += 1
        except UserError as error:
            fix = f"rm {shlex.quote(str(path))} and extract or import it again, or move it away"
            yield Finding("stores", "problem", str(error), fix)
    yield Finding("stores", "ok", f"{opened} can be opened")


def synthesized(root: Path) -> Iterator[Finding]:
    """Check that all synthesized features are whole, and of stores that are there."""
    whole = 0
    for path in find_kept(root):
        try:
            require_whole(path)
        except UserError as error:
            yield Finding("synthesized", "problem", str(error), f"rm {shlex.quote(str(path))}")
            continue
        if is_stale(path):
            found = f"{path}: its store is gone or has become another one, so nothing reads it"
            fix = f"fewshot cache --prune --store {shlex.quote(str(root))}"
            yield Finding("synthesized", "warning", found, fix)
        whole += 1
    yield Finding("synthesized", "ok", f"{whole} files of synthesized features are whole")
