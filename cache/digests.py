"""The content of image files as digests: an image is what its bytes are, wherever it lies."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.bank import Bank, Stamp
from cache.layouts import digits

if TYPE_CHECKING:
    from cache.source import Source

SIZE = 32  # bytes of a SHA-256
NONE = bytes(SIZE)  # of a file that cannot be read


def content(source: "Source", path: str) -> tuple[Stamp, bytes]:
    """The stamp and the SHA-256 of an item's file; OSError where it cannot be read."""
    if source.bundled:
        pixels = digits.image(path).tobytes()
        return Stamp(len(pixels), 0), hashlib.sha256(pixels).digest()
    place = source.root / path
    if not place.is_file():  # a folder, or what never ends
        raise FileNotFoundError(f"no file at {place}")
    stamp = Stamp.of(place)
    with place.open("rb") as file:
        return stamp, hashlib.file_digest(file, "sha256").digest()


def unchanged(source: "Source", path: str, stamp: Stamp) -> bool:
    """True if an item's file has the stamp that it had."""
    return source.bundled or Stamp.of(source.root / path) == stamp


class Digests:
    """The digest of each of some rows of each split, as far as known, `NONE` where it is not.

    Attributes:
        source: The images.
        rows: Split -> (n,) its rows.
        of: Split -> (n, 32) uint8, in that order.
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
        self.source, self.rows, self._bank = source, rows, bank
        self.of = {split: np.zeros((len(chosen), SIZE), np.uint8) for split, chosen in rows.items()}
        self.trusted = 0
        if not trust or source.bundled:
            return
        for split, chosen in rows.items():
            for start in range(0, len(chosen), 4096):
                places = range(start, min(start + 4096, len(chosen)))
                stamps = {}
                for place in places:
                    path = source.root / self.path(split, place)
                    try:
                        stamps[path] = Stamp.of(path)
                    except OSError:
                        continue
                known = bank.digests(stamps)
                self.trusted += len(known)
                for place in places:
                    digest = known.get(source.root / self.path(split, place), NONE)
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
                return content(self.source, self.path(split, place))
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
        if not self.source.bundled:
            self._bank.remember({self.source.root / path: found for path, found in read.items()})

    def total(self) -> str:
        """One digest of all, in hex, in store order."""
        digest = hashlib.sha256()
        for found in self.of.values():
            digest.update(found.tobytes())
        return digest.hexdigest()
