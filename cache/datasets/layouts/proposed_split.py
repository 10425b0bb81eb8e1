"""Proposed splits of zero-shot learning, with images: `res101.mat`, `att_splits.mat`, photographs.

`res101.mat` holds a label and a path for each image; the paths are those of its authors' disk, of
which the end is looked up below the folder of images.
"""

from pathlib import Path, PurePosixPath

from cache.datasets.layouts.split_file import read_declared
from cache.datasets.listing import Item, Listing
from cache.datasets.manifest_file import Manifest
from cache.datasets.mat_files import FEATURES, read_proposed_split
from cache.errors import UserError, excerpt


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of a proposed split, seen classes first.

    Raises:
        UserError: A file is missing, damaged or another, or there are no images.
    """
    layout = manifest.layout
    directory = data_root / layout.directory
    root = directory / layout.images
    if layout.checksum:
        read_declared(directory / layout.split_file, layout.checksum)
    found = read_proposed_split(directory, features=False).arrays
    instead = f"take the ResNet features: fewshot import {directory} --dataset {manifest.name}"
    if "train_paths" not in found:
        raise UserError(f"{directory / FEATURES} has no image_files; get it again, or {instead}")
    paths = {split: [str(path) for path in found[f"{split}_paths"]] for split in ("train", "test")}
    strip = _parts_to_strip(paths["train"][0], root)
    if strip is None:
        raise UserError(
            f"the images of {manifest.name} are not in {root}, such as "
            f"{excerpt(paths['train'][0])}; put them there, or {instead}"
        )
    return Listing(
        root,
        tuple(manifest.called(str(name)) for name in found["classnames"]),
        {
            split: tuple(
                Item("/".join(_parts(path)[strip:]), int(label))
                for path, label in zip(paths[split], found[f"{split}_labels"], strict=True)
            )
            for split in paths
        },
        f"proposed split of {layout.split_file}",
    )


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path.replace("\\", "/")).parts


def _parts_to_strip(path: str, root: Path) -> int | None:
    """How many parts of a path come before the one that is below the root; None if none is."""
    parts = _parts(path)
    below = (k for k in range(len(parts)) if not parts[k].startswith("/"))
    return next((k for k in below if root.joinpath(*parts[k:]).is_file()), None)
