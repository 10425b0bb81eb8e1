"""Refusal of work that could not fit in memory, before any of it is done."""

import os
from pathlib import Path

from cache.errors import UserError

GIB = 2**30
MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or all there are, or None where neither is known."""
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


def require_memory(n_bytes: int, what: str, remedy: str) -> None:
    """Return if the work fits, or if nothing is known about memory.

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
