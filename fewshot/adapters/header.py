"""The header of an adapter file, read without its tensors and without torch."""

from pathlib import Path

from fewshot.sealed_file import card_of

SUFFIX = ".safetensors"
KEY = "fewshot"  # of the card in the metadata of the header


def is_adapter(path: Path) -> bool:
    """True for a file that is called an adapter or has a card; no more than its header is read."""
    if path.suffix == SUFFIX:
        return True
    try:
        return path.is_file() and card_of(path, KEY) is not None
    except OSError:
        return False
