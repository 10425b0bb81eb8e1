"""Images without labels as a dataset: one train split, and the class names from a file."""

from dataclasses import replace
from pathlib import Path

from cache.datasets.image_search import describe_ignored, find_images
from cache.datasets.items import Items
from cache.datasets.layouts import sharded
from cache.datasets.layouts.shard_names import dataset_name, is_pattern
from cache.datasets.listing import Listing
from cache.datasets.source import Source, source_of
from cache.errors import UserError
from cache.files.names import name_of
from cache.images.decoding_memory import MAX_PIXELS

UNLABELED = -1  # stands where a label would


def find_unlabeled(dataset: str | None, names: Path, *, max_pixels: int = MAX_PIXELS) -> Source:
    """The images of a folder, of all folders in it, or of shards, as a train split.

    Args:
        dataset: The folder, or a pattern of shards. Labels that are there are not looked at.
        names: A text file with a class name per line.
        max_pixels: Width times height of the largest image that is decoded.

    Raises:
        UserError: Nothing of that kind is there, or no image, or fewer than two names.
    """
    if dataset is None:
        raise UserError("--unlabeled needs --dataset FOLDER or SHARDS, which hold the images")
    if is_pattern(dataset):
        listing, name = sharded.read_pattern(dataset, labeled=False), dataset_name(dataset)
    elif Path(dataset).is_dir():
        folder = Path(dataset).absolute()
        listing = sharded.read_folder(str(folder), labeled=False) or _files(folder)
        name = name_of(folder)
    else:
        raise UserError(
            f"--unlabeled takes images from a folder or from shards; got {dataset}, which is "
            "neither"
        )
    source = source_of(f"{name}-unlabeled", replace(listing, classnames=_names(names)), exif=True)
    shards = listing.reader is not None
    return replace(source, unlabeled=True, exif=not shards, max_pixels=max_pixels)


def _files(folder: Path) -> Listing:
    found = find_images(folder)
    if not found.paths:
        raise UserError(f"no image in {folder}; give a folder that holds some")
    ignored = describe_ignored(found.ignored)
    notes = (f"files left out: {ignored}",) if ignored else ()
    items = Items.of(found.paths, [UNLABELED] * len(found.paths))
    return Listing(folder, (), {"train": items}, "folder, unlabeled", notes)


def _names(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {file} ({error}); give --unlabeled a text file, a class name per line"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < 2:
        raise UserError(
            f"{file} must have two class names at least, one per line; got {len(names)}"
        )
    return names
