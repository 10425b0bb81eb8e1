"""Features that machines without a common disk share: a folder or a URL that all can reach.

Each shard that was encoded is one file there, which appears whole, and is called after its content:
what is damaged is not taken. Files of one encoder lie in one folder, those of each share of the
images (`--shard I/N`) in one within it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from cache.datasets import addresses
from cache.datasets.reader import Stamp
from cache.extraction.shards import Cropping, Encoded, Shard
from cache.files.json_text import canonical_json

THREADS = 8  # that fetch files
_ENCODING = "encoding.json"
_ENDING = ".features"


class Fetched(NamedTuple):
    """A shard that another machine encoded.

    Attributes:
        read: Place -> stamp and digest of each image, as it was read.
        keys: n keys of crops.
        vectors: (n, D) float32, as in `Encoded`.
    """

    read: dict[str, tuple[Stamp, bytes]]
    keys: list[bytes]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class SharedFeatures:
    """The shared features of one encoder; plain data, so that it goes to other processes.

    Attributes:
        address: The folder of all encoders, as a path or a URL.
        name: The folder of this one.
        share: That of a share of the images; empty for all.
    """

    address: str
    name: str
    share: str

    @classmethod
    def of(cls, address: str, encoding: Mapping[str, Any], part: tuple[int, int] | None) -> Self:
        """The shared features of an encoder, which is noted there.

        Args:
            address: The folder of all encoders.
            encoding: All that changes a byte of a feature, besides the crop.
            part: (i, n): the share of the images; None for all.
        """
        spelled = canonical_json(encoding).encode()
        name = hashlib.sha256(spelled).hexdigest()[:16]
        share = "" if part is None else f"{part[0]}-of-{part[1]}"
        if not addresses.is_remote(address):  # other processes may be in other folders
            address = str(Path(address).expanduser().absolute())
        found = cls(address.rstrip("/"), name, share)
        note = f"{found.address}/{name}/{_ENCODING}"
        if not addresses.exists(note):
            addresses.write(note, spelled)
        return found

    def put(self, cropping: Cropping, shard: Shard, encoded: Encoded) -> None:
        """Put what was made of a shard there, but of images that could not be read."""
        place = cropping.source.images.place
        read = [
            (place(image.path), *found)
            for i, (image, found) in enumerate(zip(shard.images, encoded.contents, strict=True))
            if found is not None and i not in encoded.reasons
        ]
        if not read:
            return
        arrays: dict[str, NDArray[Any]] = {
            "digests": _bytes_of([digest for _, _, digest in read]),
            "keys": _bytes_of(list(encoded.keys)),
            "places": np.frombuffer(json.dumps([place for place, *_ in read]).encode(), np.uint8),
            "stamps": np.array([stamp for _, stamp, _ in read], np.int64),
            "vectors": encoded.vectors,
        }
        content = save(arrays)
        folder = "/".join(filter(None, (self.address, self.name, self.share or "all")))
        addresses.write(f"{folder}/{_name_of(content)}{_ENDING}", content)

    def fetch(self) -> Iterator[Fetched]:
        """Yield what is there of this share, or of all shares, as far as it is whole."""
        files = addresses.matching(f"{self.address}/{self.name}/{self.share or '*'}/*{_ENDING}")
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(files), THREADS):  # so that few are in memory
                some = files[start : start + THREADS]
                for file, content in zip(some, pool.map(addresses.read, some), strict=True):
                    if file.endswith(f"/{_name_of(content)}{_ENDING}"):
                        yield _fetched(content)

    def other(self) -> str:
        """By what the encoders that have put features there differ from this one, if any have."""
        mine: dict[str, Any] = {}
        others = []
        for note in addresses.matching(f"{self.address}/*/{_ENCODING}"):
            encoding = json.loads(addresses.read(note))
            if note.endswith(f"/{self.name}/{_ENCODING}"):
                mine = encoding
            else:
                others.append(encoding)
        flat = [{**other, **other["machine"], **other["libraries"]} for other in (mine, *others)]
        return "; ".join(
            f"{key} is {other[key]} there, {flat[0].get(key)} here"
            for other in flat[1:2]
            for key in other
            if not isinstance(other[key], dict) and other[key] != flat[0].get(key)
        )


def _name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _bytes_of(rows: list[bytes]) -> NDArray[np.uint8]:
    """(n, 32) the bytes of n digests."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def _fetched(content: bytes) -> Fetched:
    arrays = load(content)
    places = json.loads(arrays["places"].tobytes())
    stamps = (Stamp(*map(int, row)) for row in arrays["stamps"])
    digests = (row.tobytes() for row in arrays["digests"])
    read = dict(zip(places, zip(stamps, digests, strict=True), strict=True))
    return Fetched(read, [row.tobytes() for row in arrays["keys"]], arrays["vectors"])
