"""Shards as webdataset has them: tar files in which a sample is files of one name.

`0001.jpg` is the image, `0001.cls` its label, or a key of `0001.json`, or `0001.txt`. An index of
offsets is made once, and images are read from the middle of a shard: nothing is unpacked.
"""

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np

from cache import addresses, decode
from cache.errors import UserError, excerpt, printable
from cache.json_text import parse_json
from cache.layouts.conventions import IMAGES, columns, of_a_system
from cache.layouts.shard_listing import THREADS, ShardedImage, Shards, listing_of
from cache.listing import Listing
from cache.path_index import PathIndex
from cache.progress import progress
from cache.reader import Stamp

LARGEST_LABEL = 2**20  # bytes of a .cls, .txt or .json
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class TarMembers:
    """Reads members of tar shards from the middle of these."""

    shards: Shards
    index: PathIndex  # path -> shard, offset, size

    def place(self, path: str) -> str:
        """The shard's address and the member's name."""
        return f"{self.shards.root}{path}"

    def stamp(self, path: str) -> Stamp:
        """The member's size, and the time of the shard when it was listed."""
        shard, _, size = self.index[path]
        return Stamp(size, self.shards.stamps[shard].modified)

    def content(self, path: str) -> bytes:
        """The member's bytes."""
        shard, offset, size = self.index[path]
        return addresses.read(self.shards.address(shard), offset, size)

    def check(self, path: str, max_pixels: int) -> None:
        """Look at a member of a local shard as at a file; a remote one is left until it is read."""
        if not addresses.is_remote(self.shards.root):
            decode.check_file(self.content(path), max_pixels=max_pixels)

    def changed_since(self, moment: int, paths: Iterable[str]) -> list[str]:
        """The paths in shards that are not as they were listed, whenever that changed."""
        del moment
        changed = self.shards.changed()
        return [path for path in paths if self.index[path][0] in changed] if changed else []


def read(found: Sequence[str]) -> Listing:
    """The listing of the shards at these addresses.

    Raises:
        UserError: A shard is missing, cut off or no tar file; a sample has no label or two images.
    """
    shards = Shards.of(found)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress("shards listed", len(found)) as advance,
    ):
        listed = []
        for members in pool.map(lambda i: _listed(shards, i), range(len(found))):
            listed.append(members)
            advance(1)
    values = [(i, m.offset, m.size) for i, some in enumerate(listed) for m in some]
    paths = (member.sample.path for some in listed for member in some)
    index = PathIndex(paths, np.array(values, np.int64).reshape(-1, 3))
    samples = [[member.sample for member in some] for some in listed]
    return listing_of(shards, samples, TarMembers(shards, index))


class _Member(NamedTuple):
    """An image in a shard."""

    sample: ShardedImage
    offset: int
    size: int


def _listed(shards: Shards, number: int) -> list[_Member]:
    address = shards.address(number)
    try:
        return addresses.through(address, lambda file: _members(file, shards.paths[number]))
    except tarfile.TarError as error:
        raise UserError(f"{address} is cut off or no tar file ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"cannot read {address}: {error.strerror or error}") from error


def _members(file: IO[bytes], shard: str) -> list[_Member]:
    """The images of a shard with their labels, in the order in which they lie."""
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
    found = []
    for key, image in images.items():
        path = f"{shard}/{image.name}"
        label, name = _label(labels.get(key, {}), path)
        found.append(_Member(ShardedImage(path, label, name), image.offset_data, image.size))
    return found


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
