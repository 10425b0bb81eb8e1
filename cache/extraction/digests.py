"""The content of image files as digests: an image is what its bytes are, wherever it lies."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.datasets.reader import Content, Stamp
from cache.extraction.bank import Bank

if TYPE_CHECKING:
    from cache.datasets.source import Source

SIZE = 32  # bytes of a SHA-256
NONE = bytes(SIZE)  # of a file that cannot be read


def digest_of(content: Content) -> bytes:
    """The SHA-256 of a file's bytes, or of pixels that have no file.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest()


def of_images(source: "Source", split: str) -> str:
    """One digest of a split's images, in hex, whatever their order and names; reads their files.

    Raises:
        OSError: One cannot be read.
    """
    read = source.images.content
    return _of_all(digest_of(read(item.path)) for item in source.splits[split])


def _of_all(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


class Digests:
    """The digest of each of some rows of each split, as far as known, `NONE` where it is not.

    Attributes:
        source: The images.
        rows: Split -> (n,) its rows.
        of: Split -> (n, 32) uint8, in that order.
        trust: True if digests that the bank remembers were looked up.
        trusted: Number of images that were not read, since size and time are those of before.
    """

    def __init__(
        self, source: "Source", rows: Mapping[str, NDArray[np.int64]], bank: Bank, *, trust: bool
    ) -> None:
        """Look up what the bank knows of files that have the size and time they had.

        Args:
            source: The images.
            rows: Split -> (n,) its rows.
            bank: Where digests are remembered.
            trust: False to take nothing from there.
        """
        self.source, self.rows, self._bank, self.trust = source, rows, bank, trust
        self.of = {split: np.zeros((len(chosen), SIZE), np.uint8) for split, chosen in rows.items()}
        self.trusted = 0
        if not trust:
            return
        for split, chosen in rows.items():
            for start in range(0, len(chosen), 4096):
                places = range(start, min(start + 4096, len(chosen)))
                stamps = {}
                for place in places:
                    path = self.path(split, place)
                    try:
                        stamps[source.images.place(path)] = source.images.stamp(path)
                    except OSError:
                        continue
                known = bank.digests(stamps)
                self.trusted += len(known)
                for place in places:
                    digest = known.get(source.images.place(self.path(split, place)), NONE)
                    self.set(split, place, digest)

    def path(self, split: str, place: int) -> str:
        """The path of the image at a place among the rows."""
        return self.source.splits[split][int(self.rows[split][place])].path

    def at(self, split: str, place: int) -> bytes:
        """The digest at a place, or `NONE`."""
        return bytes(self.of[split][place])

    def set(self, split: str, place: int, digest: bytes) -> None:
        """Put a digest in its place."""
        self.of[split][place] = np.frombuffer(digest, np.uint8)

    def read(self, split: str, places: Iterable[int], workers: int) -> None:
        """Read the files whose digests are not known, and remember them."""
        unknown = [place for place in places if self.at(split, place) == NONE]

        def attempt(place: int) -> tuple[Stamp, bytes] | None:
            try:
                path = self.path(split, place)
                stamp = self.source.images.stamp(path)
                return stamp, digest_of(self.source.images.content(path))
            except OSError:
                return None

        read = {}
        with ThreadPoolExecutor(workers) as pool:
            for place, found in zip(unknown, pool.map(attempt, unknown), strict=True):
                if found is not None:
                    self.set(split, place, found[1])
                    read[self.path(split, place)] = found
        self.remember(read)

    def read_all(self, workers: int) -> "Digests":
        """These, once every file is read whose digest is not known."""
        for split, chosen in self.rows.items():
            for start in range(0, len(chosen), 4096):
                self.read(split, range(start, min(start + 4096, len(chosen))), workers)
        return self

    def remember(self, read: Mapping[str, tuple[Stamp, bytes]]) -> None:
        """Have the bank know the digests of these paths."""
        place = self.source.images.place
        self._bank.remember({place(path): found for path, found in read.items()})

    def of_split(self, split: str) -> str:
        """One digest of a split's images, in hex, whatever their order and names."""
        return _of_all(bytes(digest) for digest in self.of[split])

    def total(self) -> str:
        """One digest of all, in hex, in store order."""
        digest = hashlib.sha256()
        for found in self.of.values():
            digest.update(found.tobytes())
        return digest.hexdigest()
