"""Shards as webdataset has them: tar files in which a sample is files of one name.

`0001.jpg` is the image, `0001.cls` its label, or a key of `0001.json`, or `0001.txt`. An index of
offsets is made once, and images are read from the middle of a shard: nothing is unpacked.
"""

import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import numpy as np

from cache.datasets import addresses
from cache.datasets.layouts.conventions import IMAGES, columns, of_a_system
from cache.datasets.layouts.shard_listing import (
    THREADS,
    ShardedImage,
    ShardRows,
    Shards,
    listing_of,
)
from cache.datasets.listing import Listing
from cache.datasets.path_index import PathIndex
from cache.datasets.reader import Stamp
from cache.errors import UserError, excerpt, printable
from cache.files.json_text import parse_json
from cache.images import decode
from cache.progress import progress

LARGEST_LABEL = 2**20  # bytes of a .cls, .txt or .json
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class TarMembers:
    """Reads members of tar shards from the middle of these."""

    shards: Shards
    members: Mapping[str, tuple[int, PathIndex]]  # shard -> its number; path -> offset, size

    def place(self, path: str) -> str:
        """The shard's address and the member's name."""
        return f"{self.shards.root}{path}"

    def stamp(self, path: str) -> Stamp:
        """The member's size, and the time of the shard when it was listed."""
        shard, (_, size) = self._found(path)
        return Stamp(size, self.shards.stamps[shard].modified)

    def content(self, path: str) -> bytes:
        """The member's bytes."""
        shard, (offset, size) = self._found(path)
        return addresses.read(self.shards.address(shard), offset, size)

    def check(self, path: str, max_pixels: int) -> None:
        """Look at a member of a local shard as at a file; a remote one is left until it is read."""
        if not addresses.is_remote(self.shards.root):
            decode.check_file(self.content(path), max_pixels=max_pixels)

    def changed_since(self, moment: int, paths: Iterable[str]) -> list[str]:
        """The paths in shards that are not as they were listed, whenever that changed."""
        del moment
        changed = self.shards.changed()
        return [path for path in paths if self._found(path)[0] in changed] if changed else []

    def _found(self, path: str) -> tuple[int, tuple[int, ...]]:
        """The number of a member's shard; its offset and its size."""
        end = path.lower().find(".tar/") + 4
        while path[:end] not in self.members:  # a folder may be called so as well
            end = path.lower().index(".tar/", end) + 4
        number, index = self.members[path[:end]]
        return number, index[path]


def read(found: Sequence[str], labeled: bool = True) -> Listing:
    """The listing of the shards at these addresses.

    Args:
        found: The addresses.
        labeled: True if the images have labels; else all are of a train split.

    Raises:
        UserError: A shard is missing, cut off or no tar file; a sample has no label or two images.
    """
    shards = Shards.of(found)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress("shards listed", len(found)) as advance,
    ):
        listed = []
        for one in pool.map(lambda i: _listed(shards, i), range(len(found))):
            listed.append(one)
            advance(1)
    members = {shards.paths[i]: (i, index) for i, (_, index) in enumerate(listed)}
    rows = [rows for rows, _ in listed]
    return listing_of(shards, rows, TarMembers(shards, members), labeled=labeled)


def _listed(shards: Shards, number: int) -> tuple[ShardRows, PathIndex]:
    address = shards.address(number)
    try:
        return addresses.through(address, lambda file: _members(file, shards.paths[number]))
    except tarfile.TarError as error:
        raise UserError(f"{address} is cut off or no tar file ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"cannot read {address}: {error.strerror or error}") from error


def _members(file: IO[bytes], shard: str) -> tuple[ShardRows, PathIndex]:
    """The images of a shard in the order in which they lie, with their labels; offset and size."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, dict[str, str]] = {}
    end = 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            folder, slash, name = member.name.rpartition("/")
            if not member.isfile() or of_a_system(name):
                continue
            key, _, ending = name.partition(".")
            key, ending = f"{folder}{slash}{key}", ending.lower()
            if ending in IMAGES:
                if key in images:
                    raise UserError(
                        f"{shard}: {printable(key)} has two images, {images[key].name} and "
                        f"{member.name}; a sample has one"
                    )
                images[key] = member
            elif ending in _LABELS and member.size <= LARGEST_LABEL:
                content = tar.extractfile(member)
                labels.setdefault(key, {})[ending] = _text(content, f"{shard}/{member.name}")
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError("no end of the archive")
    paths = {key: f"{shard}/{image.name}" for key, image in images.items()}
    found = (ShardedImage(path, *_label(labels.get(k, {}), path)) for k, path in paths.items())
    offsets = np.array([image.offset_data for image in images.values()], np.int64)
    sizes = np.array([image.size for image in images.values()], np.int64)
    return ShardRows.of(found), PathIndex(paths.values(), (offsets, sizes))


_LABELS = ("cls", "json", "txt")


def _text(content: IO[bytes] | None, place: str) -> str:
    try:
        return content.read().decode().strip() if content else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is no text in UTF-8; get the shard again") from error


def _label(texts: dict[str, str], place: str) -> tuple[str, str]:
    """A sample's label as written and, where the label is a number, its name."""
    fields = dict(_fields(texts["json"], place)) if "json" in texts else {}
    label = texts.get("cls") or fields.get("label") or texts.get("txt", "")
    name = fields.get("classname") or (texts.get("txt", "") if "cls" in texts else "")
    return label, "" if name == label else name


def _fields(text: str, place: str) -> Iterator[tuple[str, str]]:
    value = parse_json(text, place)
    if not isinstance(value, dict):
        raise UserError(f"{place}: its .json must be an object, got {excerpt(value)}")
    taken = columns(list(value))
    for ours, theirs in taken.items():
        if isinstance(value[theirs], str | int) and ours in ("label", "classname"):
            yield ours, str(value[theirs]).strip()
