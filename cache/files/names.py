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
    """The name of the dataset in a folder: the folder's, in ASCII."""
    return ascii_name(path.resolve().name, "folder")


def ascii_name(text: str, otherwise: str) -> str:
    """The text as a safe name without accents, with a hyphen between words.

    Texts in other scripts, of which little or nothing would be left, and long ones get a digest, so
    that they stay apart.

    Args:
        text: The text.
        otherwise: The name before the digest where nothing is left.
    """
    name = unicodedata.normalize("NFKD", text)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name.encode("ascii", "ignore").decode()).strip("-.")
    lost = any(c.isalnum() and not c.isascii() for c in name)
    if safe and not lost and len(safe) <= LONGEST:
        return safe
    return f"{safe[:LONGEST] or otherwise}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
