"""What a user's folder holds: labelled photos, and others beside them without a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import UserError
from cache.layouts.folder import unlabelled_folder
from cache.listing import Item, find_images
from cache.source import TABLES, Source, find, pooled, resolve_folder, resolve_table


@dataclass(frozen=True)
class Gathered:
    """The images to learn from and those to classify.

    Attributes:
        labelled: All labelled images as the train split; a test split that the user has stays.
        unlabelled: The others as the test split of a source of one class; None without any.
    """

    labelled: Source
    unlabelled: Source | None


def gather(dataset: str | Path, unlabelled: Path | None = None) -> Gathered:
    """Find the labelled images, and the unlabelled ones.

    The latter are those of the folder that is named; without a name those of a subfolder called
    "unlabelled", and else the images that lie loose beside the class folders.

    Args:
        dataset: A folder of class folders, a table of paths and labels, or a dataset's name.
        unlabelled: A folder of further images.

    Raises:
        UserError: Nothing there, no class folders, or no images in `unlabelled`.
    """
    path = Path(dataset)
    if path.is_dir():
        found = resolve_folder(path)
    elif path.suffix.lower() in TABLES:
        found = resolve_table(path)
    else:
        try:
            found = find(str(dataset))
        except UserError as error:
            raise UserError(f"{dataset} is no folder, nor a table of images: {error}") from None
    if unlabelled is not None:
        if not unlabelled.is_dir():
            raise UserError(f"{unlabelled} is not a folder; give a folder of images to classify")
        further = _others(found, unlabelled, find_images(unlabelled).paths)
        if further is None:
            raise UserError(f"no images in {unlabelled}; give a folder of images to classify")
    else:
        further = _beside(found, path) if path.is_dir() else None
    return Gathered(pooled(found), further)


def _beside(source: Source, root: Path) -> Source | None:
    """The images in the folder that are of no class."""
    named = unlabelled_folder(root)
    inside = named and _others(source, named, find_images(named).paths)
    return inside or _others(
        source, root, [path for path in find_images(root).paths if "/" not in path]
    )


def _others(source: Source, root: Path, paths: Sequence[str]) -> Source | None:
    """Unlabelled images as a source."""
    if not paths:
        return None
    return Source(
        dataset=f"{source.dataset}-unlabelled",
        root=root.absolute(),
        classnames=("unlabelled",),
        splits={"test": tuple(Item(path, 0) for path in paths)},
        templates=(),
        origin="images without a label",
        exif=source.exif,
    )
