"""Work that does not fit in memory: refused before it begins, or explained where it failed."""

import os
import re
from pathlib import Path

from cache.errors import UserError

GIB = 2**30
MEMINFO, STATM = Path("/proc/meminfo"), Path("/proc/self/statm")


def available_memory() -> int | None:
    """Return the bytes that this process can have without swapping; None where nobody says.

    That is what the system has available, or all it has where it does not say, within the limit on
    the process's address space (`ulimit -v`) and on its data (`ulimit -d`).
    """
    known = [n for n in (_available_to_the_system(), _left_of_the_limit()) if n is not None]
    return min(known, default=None)


def _available_to_the_system() -> int | None:
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None


def _left_of_the_limit() -> int | None:
    try:
        import resource

        pages = STATM.read_text().split()  # the whole address space, ..., data and stack
        left = []
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                left.append(max(0, limit - int(used) * resource.getpagesize()))
    except (ImportError, OSError, ValueError, IndexError):  # not on this system
        return None
    return min(left, default=None)


def memory_refused(error: Exception) -> str | None:
    """Return a sentence on what was asked for and what there is; None if memory is not the cause.

    Args:
        error: Of Python, numpy or torch, on a CPU or a GPU.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", text):
        return None
    asked = re.search(r"llocate ([\d.]+) (bytes|[KMGTP]iB)", text)
    wanted = "more"
    if asked is not None:
        n_bytes = float(asked[1]) * 2 ** (10 * ("bKMGTP".index(asked[2][0])))
        wanted = f"{n_bytes / GIB:.1f} GiB more"
    if "GPU" in text or "CUDA" in text:
        return f"the GPU is out of memory: {wanted} could not be had"
    available = available_memory()
    there = "" if available is None else f", and {available / GIB:.1f} GiB are available"
    return f"out of memory: {wanted} could not be had{there}"


def require_memory(n_bytes: int, what: str, remedy: str) -> None:
    """Raise UserError unless the work fits, or nothing is known about memory.

    Args:
        n_bytes: Most that the work holds at a time.
        what: The work, as the subject of a sentence: "proker with 16000 support images".
        remedy: What else to do, such as "use fewer shots".

    Raises:
        UserError: It does not fit.
    """
    available = available_memory()
    if available is not None and n_bytes > available:
        raise UserError(
            f"{what} needs {n_bytes / GIB:.1f} GiB of memory and {available / GIB:.1f} GiB are "
            f"available; {remedy}, or use a machine with more"
        )
