"""Names that come from outside, made safe wherever they become paths."""

import hashlib
import re
import unicodedata
from pathlib import Path

from cache.errors import UserError

LONGEST = 100  # characters; file systems end at 255 bytes, and names get digests and suffixes


def safe_name(name: str) -> str:
    """The name as a part of a path: ASCII letters, digits, `.`, `_` and `-`; no path, not hidden.

    Every other character becomes a hyphen. A name of which that leaves nothing readable, or which
    is too long, gets a digest, so that two of them stay apart.

    Raises:
        UserError: The name is empty, or dots and nothing else.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".")
    if not safe:
        raise UserError(f"a name needs a letter or a digit; got {name!r}")
    if len(safe) <= LONGEST and re.search("[A-Za-z0-9]", safe):
        return safe
    return f"{safe[:LONGEST].strip('-') or 'name'}-{_digest(name)}"


def name_of(path: Path) -> str:
    """The name of the dataset in a folder: the folder's, in ASCII.

    Folders in other scripts, of which little or nothing would be left, stay apart.
    """
    name = unicodedata.normalize("NFKD", path.resolve().name)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name.encode("ascii", "ignore").decode()).strip("-.")
    if safe and not any(c.isalnum() and not c.isascii() for c in name):
        return safe
    return f"{safe or 'folder'}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
