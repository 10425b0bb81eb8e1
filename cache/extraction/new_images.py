"""Which images are not encoded yet, found without reading those that are as they were."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.datasets.addresses import is_remote
from cache.errors import UserError
from cache.extraction.bank import Bank
from cache.extraction.digests import NONE, Digests
from cache.extraction.shards import CENTER, Cropping, Encoded, Shard, Wanted
from cache.images.skipped import Skipped

# In a shard, which is what a kill or a lost worker costs at most: half a minute of a ViT-B on two
# cores, or as many large photos as one core decodes in that time.
ROWS = 512
BYTES = 2**28  # of image files
Group = tuple[str, range]  # a split, and places among its rows that are encoded


def groups(digests: Digests) -> list[Group]:
    """The rows of every split in pieces of equal size, in store order."""
    return [
        (split, range(start, min(start + ROWS, len(rows))))
        for split, rows in digests.rows.items()
        for start in range(0, len(rows), ROWS)
    ]


class _Place(NamedTuple):
    split: str
    place: int


class NewImages:
    """The images of a source that a bank does not know, as shards; takes what is made of them.

    Attributes:
        digests: What the images contain.
        skipped: (split, row) -> an image that does not decode.
    """

    def __init__(
        self, cropping: Cropping, digests: Digests, bank: Bank, encoder: int, views: int
    ) -> None:
        self.digests = digests
        self.skipped: dict[tuple[str, int], Skipped] = {}
        self._cropping, self._bank, self._encoder = cropping, bank, encoder
        self._views = views
        self._known = {split: np.zeros(len(rows), np.bool_) for split, rows in digests.rows.items()}
        self._where: dict[int, list[_Place]] = {}  # what a shard that is not back yet is made of
        self._n_shards = 0

    def find_known(self, some: Sequence[Group]) -> int:
        """Look up images without reading any; the number of those of which nothing is missing."""
        for split, places in some:
            missing = self._missing(split, places)
            self._known[split][[place for place in places if place not in missing]] = True
        return sum(int(self._known[split][places].sum()) for split, places in some)

    def shards(
        self, some: Sequence[Group], workers: int, advance: Callable[[int], None]
    ) -> Iterator[Shard]:
        """The images to encode, by and by; `advance` gets the number of those known by content."""
        waiting: list[tuple[_Place, Wanted]] = []
        size = 0
        for split, places in some:
            unsure = [place for place in places if not self._known[split][place]]
            if unsure and not self._is_far(split, unsure[0]):
                self.digests.read(split, unsure, workers)
            missing = self._missing(split, unsure)
            advance(len(unsure) - len(missing))
            for place, crops in missing.items():
                image = Wanted(self.digests.path(split, place), crops)
                waiting.append((_Place(split, place), image))
                size += self._size(image.path)
                if len(waiting) == ROWS or size >= BYTES:
                    yield self._shard(waiting)
                    waiting, size = [], 0
        if waiting:
            yield self._shard(waiting)

    def keep(self, encoded: Encoded) -> None:
        """Put a shard's features into the bank."""
        self._bank.put(self._encoder, "image", encoded.keys, encoded.vectors)
        read = {}
        for i, (split, place) in enumerate(self._where.pop(encoded.number)):
            path, found = self.digests.path(split, place), encoded.contents[i]
            self.digests.set(split, place, found[1] if found else NONE)
            if found:
                read[path] = found
            if i in encoded.reasons:
                row = int(self.digests.rows[split][place])
                self.skipped[split, row] = Skipped(split, path, encoded.reasons[i])
        self.digests.remember(read)

    def keys(self, split: str, places: Iterable[int]) -> dict[int, list[bytes]]:
        """Place -> the keys of its crops, the center crop's first, of images that can be read."""
        crops = self._crops(split)
        rows = self.digests.rows[split]
        return {
            place: [self._cropping.key(self.digests.at(split, place), crop) for crop in crops]
            for place in places
            if self.digests.at(split, place) != NONE
            and (split, int(rows[place])) not in self.skipped
        }

    def features(self, group: Group) -> NDArray[np.float32]:
        """(n, 1 + V, D) features of the images of a group that can be read, and of their views.

        With pooled images, these follow each feature: (n, 1 + V, D + w).

        Raises:
            UserError: The bank was damaged or pruned meanwhile.
        """
        keys = self.keys(*group)
        kept = self._bank.get(self._encoder, [key for some in keys.values() for key in some])
        try:
            return np.array([[kept[key] for key in some] for some in keys.values()], np.float32)
        except KeyError:
            raise UserError(
                f"features in {self._bank.path} were damaged or removed while they were used; run "
                "the same command again"
            ) from None

    def _crops(self, split: str) -> list[int]:
        """Numbers of the crops of each image of a split; only training images have views."""
        return [CENTER, *range(self._views if split == "train" else 0)]

    def _missing(self, split: str, places: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """Place -> the crops that are not kept; all of them where the content is not known."""
        keys, crops = self.keys(split, places), self._crops(split)
        kept = self._bank.get(self._encoder, [key for some in keys.values() for key in some])
        missing = {
            place: tuple(
                crop
                for i, crop in enumerate(crops)
                if place not in keys or keys[place][i] not in kept
            )
            for place in places
        }
        return {place: wanted for place, wanted in missing.items() if wanted}

    def _is_far(self, split: str, place: int) -> bool:
        """True where reading an image just to find it known costs more than encoding it again."""
        place_of_it = self.digests.source.images.place(self.digests.path(split, place))
        return self.digests.trust and is_remote(place_of_it)

    def _size(self, path: str) -> int:
        """The bytes of an image; 0 where it cannot be read, of which its shard says why."""
        try:
            return self.digests.source.size(path)
        except OSError:
            return 0

    def _shard(self, images: Sequence[tuple[_Place, Wanted]]) -> Shard:
        number = self._n_shards
        self._n_shards += 1
        self._where[number] = [place for place, _ in images]
        return Shard(number, tuple(image for _, image in images))
