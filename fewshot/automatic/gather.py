"""Find the labeled photos of a folder, and the unlabeled ones beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.datasets.image_search import find_images
from cache.datasets.layouts.folder import unlabeled_folder
from cache.datasets.layouts.table_file import ENDINGS as TABLES
from cache.datasets.listing import Item
from cache.datasets.resolving import NoDatasetError, find, resolve_folder, resolve_table
from cache.datasets.source import Source, pooled
from cache.errors import UserError
from cache.images.decoding_memory import MAX_PIXELS


@dataclass(frozen=True)
class Photos:
    """The labeled photos and the unlabeled ones.

    Attributes:
        labeled: All labeled images as the train split; a test split that the user has stays.
        unlabeled: The others as the test split of a source of one class; None without any.
    """

    labeled: Source
    unlabeled: Source | None


def gather(
    dataset: str | Path, unlabeled: Path | None = None, *, max_pixels: int = MAX_PIXELS
) -> Photos:
    """Find the labeled images, and the unlabeled ones.

    Unlabeled images are those of the folder `unlabeled`; by default those of a subfolder called
    "unlabeled", else the images beside the class folders.

    Args:
        dataset: A folder of class folders, a table of paths and labels, or a dataset's name.
        unlabeled: A folder of further images.
        max_pixels: Width times height of the largest image that is decoded.

    Raises:
        UserError: Nothing there, no class folders, or no images in `unlabeled`.
    """
    path = Path(dataset)
    if path.is_dir():
        found = resolve_folder(path)
    elif path.suffix.lower() in TABLES:
        found = resolve_table(path)
    else:
        try:
            found = find(str(dataset))
        except NoDatasetError:
            raise UserError(
                f"no folder or table of images at {dataset}; check its name; "
                "fewshot datasets lists the datasets that go by name"
            ) from None
    found.require_one_label("auto")
    found = replace(found, max_pixels=max_pixels)
    if unlabeled is not None:
        if not unlabeled.is_dir():
            raise UserError(f"{unlabeled} is not a folder; give a folder of images to classify")
        further = _others(found, unlabeled, find_images(unlabeled).paths)
        if further is None:
            raise UserError(f"no images in {unlabeled}; give a folder of images to classify")
    else:
        further = _beside(found, path) if path.is_dir() else None
    return Photos(pooled(found), further)


def _beside(source: Source, root: Path) -> Source | None:
    """The images in the folder that are of no class."""
    named = unlabeled_folder(root)
    inside = named and _others(source, named, find_images(named).paths)
    return inside or _others(
        source, root, [path for path in find_images(root).paths if "/" not in path]
    )


def _others(source: Source, root: Path, paths: Sequence[str]) -> Source | None:
    """Unlabeled images as a source."""
    if not paths:
        return None
    return Source(
        dataset=f"{source.dataset}-unlabeled",
        root=root.absolute(),
        classnames=("unlabeled",),
        splits={"test": tuple(Item(path, 0) for path in paths)},
        templates=(),
        origin="images without a label",
        exif=source.exif,
        max_pixels=source.max_pixels,
    )
