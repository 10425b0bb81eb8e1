"""Datasets in shards: from what a user names to the shards, and to the layout that lists them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cache.datasets import addresses
from cache.datasets.layouts import table_shards, tar_shards
from cache.datasets.layouts.conventions import SPLITS
from cache.datasets.layouts.shard_listing import addresses_of
from cache.datasets.layouts.shard_names import ENDINGS
from cache.datasets.listing import Listing
from cache.errors import UserError

READERS: Mapping[str, Callable[[Sequence[str], bool], Listing]] = {
    ".tar": tar_shards.read,
    ".parquet": table_shards.read,
    ".arrow": table_shards.read,
}
_SPLIT_FOLDERS = tuple(name for names in SPLITS.values() for name in names)


def read_pattern(pattern: str, *, labeled: bool = True) -> Listing:
    """The listing of the shards of a pattern, or in a folder at a URL.

    Args:
        pattern: A path or a URL.
        labeled: True if the images have labels; else all are of a train split.

    Raises:
        UserError: There are none, one cannot be read, or they have no labels.
    """
    if not addresses.is_remote(pattern):
        pattern = str(Path(pattern).expanduser().absolute())
    for ending, read in READERS.items():
        if pattern.lower().endswith(ending):
            return read(addresses_of(pattern, ending), labeled)
    found = read_folder(pattern.rstrip("/"), labeled=labeled)
    if found is None:
        raise UserError(f"no shards in {pattern}; expected files that end in {', '.join(ENDINGS)}")
    return found


def read_folder(folder: str, *, labeled: bool = True) -> Listing | None:
    """The listing of the shards in a folder, or in folders of splits in it; None without any.

    Where these have a file `nshards.txt`, as CLIP_benchmark's, it says how many there are.

    Args:
        folder: A path or a URL.
        labeled: As in `read_pattern`.

    Raises:
        UserError: One cannot be read, or they have no labels.
    """
    numbered = [
        f"{folder}/{split}/{{0..{_n_shards(f'{folder}/{split}/nshards.txt') - 1}}}.tar"
        for split in _SPLIT_FOLDERS
        if addresses.exists(f"{folder}/{split}/nshards.txt")
    ]
    if numbered:
        found = [one for pattern in numbered for one in addresses.expand(pattern)]
        return tar_shards.read(found, labeled)
    for ending, read in READERS.items():
        found = addresses.below(folder, ending, _SPLIT_FOLDERS)
        found = [address for address in found if not _of_a_cache(address)]
        if found:
            return read(found, labeled)
    return None


def _n_shards(address: str) -> int:
    text = addresses.read(address).decode(errors="replace").strip()
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise UserError(f"{address} must hold the number of shards; got {text[:40]!r}")
    return int(text)


def _of_a_cache(address: str) -> bool:
    """True for a file that Hugging Face's library keeps beside a dataset's own."""
    return address.rpartition("/")[2].startswith(("cache-", "indices-"))
