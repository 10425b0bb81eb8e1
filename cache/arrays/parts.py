"""The parts of a store: files that have features, views and pooled images of some of a split.

A store in parts is an HDF5 file as any other store, but for what it would hold of each image
beside its label and its path. It lists the files that hold that, in the order of the images, in an
array `parts`. They lie in a folder beside it. Each is written once, under a name that says what it
was made of, and is never changed.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.arrays.contents import Contents
from cache.arrays.hdf5 import Place, attributes, places, root, stamp, within
from cache.arrays.image_matrices import ImageMatrices
from cache.arrays.store_file import new_file
from cache.datasets.addresses import beside
from cache.errors import UserError
from cache.files.json_text import canonical_json

FORMAT = "fewshot feature store part"
SCHEMA = 1
LISTING = "parts"  # the array of a store that lists them
PART_BYTES = 2**26  # of vectors: 65,000 images of 512 features; 160 files of ten million images


@dataclass(frozen=True)
class StorePart:
    """One part, as a store lists it.

    Attributes:
        file: Its folder and its name, as seen from the folder that the store's file is in.
        images: How many images it has the features of.
        made_of: 64 hex digits that stand for the crops and the encoder; see `create_part`.
        bytes: Its size.
        digest: 64 hex digits that stand for its arrays.
    """

    file: str
    images: int
    made_of: str
    bytes: int
    digest: str

    @classmethod
    def of(cls, contents: Contents, made_of: str) -> "StorePart":
        """The entry of a part that is there."""
        file = "/".join(Path(contents.address).parts[-2:])
        images = next(p.shape[0] for n, p in contents.places.items() if n.endswith("/features"))
        return cls(file, images, made_of, contents.stamp.size, _digest(contents.places))


@contextlib.contextmanager
def create_part(
    path: Path,
    split: str,
    made_of: str,
    shapes: Mapping[str, tuple[int, ...]],
    name: Callable[[int], str],
) -> Iterator[ImageMatrices]:
    """A writer of the part at `path`, which appears when the block ends well.

    Args:
        path: Where it goes.
        split: train, val or test.
        made_of: 64 hex digits that stand for all that changes a byte of it.
        shapes: `features`, (n, D), and `views`, (V, n, D), `pooled` and `pooled_views` likewise.
        name: Names the image at a place, for messages.

    Raises:
        UserError: The disk is full.
        ValueError: A row was not written.
    """
    with new_file(path) as (file, disk, said):
        images = ImageMatrices(path, file, disk, split, lambda _, place: name(place))
        for vectors, shape in shapes.items():
            images.reserve(vectors, shape)
        yield images
        images.check_complete()
        said["format"] = np.bytes_(FORMAT)
        said["schema"] = SCHEMA
        said["made_of"] = np.bytes_(made_of)
        said["complete"] = True


def open_part(address: str, made_of: str) -> Contents:
    """The arrays of a part, of which its header alone is read.

    Raises:
        UserError: It is missing, damaged, unfinished, no part, or made of something else.
    """
    found = stamp(address)

    def located(file: Any) -> tuple[dict[str, Any], dict[str, Place]]:
        return attributes(root(file)), places(file, found.size)

    said, here = within(address, located)
    if said.get("format") != np.bytes_(FORMAT) or not said.get("complete", False):
        raise UserError(f"{address} is no finished part of a store")
    if said.get("schema") != SCHEMA:
        raise UserError(
            f"{address} has schema {said.get('schema')} and this version reads {SCHEMA}; install a "
            "newer fewshot, or extract again"
        )
    if said.get("made_of") != np.bytes_(made_of):
        raise UserError(f"{address} is of another run")
    return Contents(address, found, here)


def open_listed(store: str, part: StorePart) -> Contents:
    """The arrays of a part of the store at an address.

    Raises:
        UserError: It is missing, or is another one than the store lists.
    """
    address = beside(store, part.file)
    try:
        found = open_part(address, part.made_of)
    except UserError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        reason = f"{address} is missing" if missing else str(error)
        raise UserError(
            f"{reason}, and {store} needs it; put back the part, or run the command that made the "
            "store again with --if-exists overwrite"
        ) from error
    if (found.stamp.size, _digest(found.places)) != (part.bytes, part.digest):
        raise UserError(
            f"{address} has other features than those that {store} lists; put back the part, or "
            "run the command that made the store again with --if-exists overwrite"
        )
    return found


def listing_json(parts: Mapping[str, Sequence[StorePart]]) -> str:
    """The parts of each split, as a store lists them."""
    return canonical_json({split: list(map(asdict, some)) for split, some in parts.items()})


def listed(store: Contents) -> dict[str, list[StorePart]]:
    """The parts of each split that a store lists.

    Raises:
        UserError: The list is damaged, or refers outside the folders beside the store.
    """
    try:
        found = {
            str(split): [StorePart(**part) for part in parts]
            for split, parts in store.json(LISTING).items()
        }
    except TypeError:
        raise store.damaged(LISTING) from None
    for part in (part for parts in found.values() for part in parts):
        if not re.fullmatch(r"[^/\\:]+/[^/\\:]+", str(part.file)) or part.file.startswith(".."):
            raise UserError(
                f"{store.address} refers to {json.dumps(part.file)}, which does not lie in a "
                "folder beside it; do not trust it, and make it again"
            )
    return found


def parts_folder(store: Path) -> Path:
    """The folder of a store's parts."""
    return store.with_suffix(".parts")


def remove_others(folder: Path, files: Collection[str]) -> None:
    """Remove parts that a store does not list, and the folder if none is left."""
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        if f"{folder.name}/{file.name}" not in files:
            file.unlink()
    if not files:
        folder.rmdir()


def _digest(here: Mapping[str, Place]) -> str:
    arrays = [[name, *place.shape, place.dtype, place.sha256] for name, place in here.items()]
    return hashlib.sha256(canonical_json(sorted(arrays)).encode()).hexdigest()
