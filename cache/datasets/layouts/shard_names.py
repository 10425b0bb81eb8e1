"""Names of shards: is a text a pattern of them, of which split, of which dataset."""

import re
from pathlib import Path

from cache.datasets.layouts.conventions import split_of
from cache.files.names import ascii_name

ENDINGS = (".tar", ".parquet", ".arrow")
_GENERAL = ("of", "data")  # words in names of shards and folders that say nothing


def is_pattern(dataset: str) -> bool:
    """True if the text names shards rather than a dataset, a folder or a table."""
    return "://" in dataset or dataset.lower().endswith(ENDINGS)


def split_in(path: str) -> str | None:
    """The split that a word of a shard's path names, the last such word; None where none does."""
    words = re.split(r"[^A-Za-z]+", path)
    return next((split for word in reversed(words) if word and (split := split_of(word))), None)


def dataset_name(pattern: str) -> str:
    """The name of a dataset in shards.

    It is that of the shards without numbers and splits, else of the folder that they are in.
    """
    place = re.sub(r"\{[^{}]*\}|\*", "", pattern.rpartition("://")[2])
    ending = next((ending for ending in ENDINGS if place.lower().endswith(ending)), "")
    for part in reversed(place[: len(place) - len(ending)].split("/")):
        words = [word for word in re.split(r"[-_. ]+", part) if word and not word.isdigit()]
        words = [word for word in words if split_of(word) is None and word.lower() not in _GENERAL]
        if words:
            return ascii_name("-".join(words), "shards")
    return ascii_name(Path.cwd().name, "shards")
