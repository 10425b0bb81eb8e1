"""A safetensors file with a card, which is JSON in its header, and a digest over all.

The digest stands in the card and covers every byte of the file, in which its own 64 digits count
as zeros. Whatever one changes in such a file is seen when it is read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.files.atomic import replacing

if TYPE_CHECKING:
    from torch import Tensor

ZEROS = "0" * 64
_DIGEST = '\\"digest\\": \\"{}\\"'  # as it stands in the header: JSON within JSON


def card_of(path: Path, key: str) -> dict[str, Any] | None:
    """The card under a key in the header of a file, its tensors not read; None without one.

    Raises:
        OSError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            card = json.loads((file.metadata() or {})[key])
    except (SafetensorError, KeyError, ValueError, RecursionError):
        return None
    return card if isinstance(card, dict) else None


def write_sealed(
    path: Path, key: str, version: int, card: Mapping[str, Any], tensors: Mapping[str, "Tensor"]
) -> None:
    """Write the file whole or not at all.

    Args:
        path: The file.
        key: Of the card in the header's metadata.
        version: Number of the format, which goes into the card as `format`.
        card: The rest of the card, but for the digest.
        tensors: Name -> tensor.
    """
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps({"format": version, "digest": ZEROS, **card}, ensure_ascii=False)
    content = save(plain, {key: text})
    place = _digest_at(content, ZEROS)
    digest = hashlib.sha256(content).hexdigest().encode()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.seek(place)
        file.write(digest)


def is_whole(content: bytes, digest: str) -> bool:
    """True if the bytes of a file are those that were written with this digest in the card."""
    place = _digest_at(content, digest)
    if place < 0:
        return False
    view = memoryview(content)
    found = hashlib.sha256(view[:place])
    found.update(ZEROS.encode())
    found.update(view[place + len(ZEROS) :])
    return found.hexdigest() == digest


def _digest_at(content: bytes, digest: str) -> int:
    """Where a digest stands in the header; -1 where it does not."""
    end = 8 + int.from_bytes(content[:8], "little")
    before, _, _ = _DIGEST.partition("{}")
    found = content.find(_DIGEST.format(digest).encode(), 8, end)
    return found if found < 0 else found + len(before)
