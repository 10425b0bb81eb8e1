"""The header of an adapter file, read without its tensors and without torch."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

SUFFIX = ".safetensors"
KEY = "fewshot"  # of the card in the metadata of the header


def is_adapter(path: Path) -> bool:
    """True for a file that is called an adapter or has a card; no more than its header is read."""
    if path.suffix == SUFFIX:
        return True
    try:
        return path.is_file() and card_of(path) is not None
    except OSError:
        return False


def card_of(path: Path) -> dict[str, Any] | None:
    """The card in the header of a file; None of a file without one."""
    try:
        with safe_open(path, "np") as file:
            card = json.loads((file.metadata() or {})[KEY])
    except (SafetensorError, KeyError, ValueError, RecursionError):
        return None
    return card if isinstance(card, dict) else None
