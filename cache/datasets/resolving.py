"""A dataset by its name, its folder, its table or its shards: resolved to what lies on disk."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cache.datasets.addresses import is_remote
from cache.datasets.layouts import (
    aircraft,
    digits,
    folder,
    imagenet,
    list_file,
    proposed_split,
    sharded,
    split_file,
    table,
)
from cache.datasets.layouts import torchvision_datasets as from_torchvision
from cache.datasets.layouts.described_folder import read_described
from cache.datasets.layouts.shard_names import dataset_name, is_pattern
from cache.datasets.layouts.table_file import ENDINGS as TABLES
from cache.datasets.listing import Listing
from cache.datasets.manifest import load_manifest
from cache.datasets.manifest_file import Manifest
from cache.datasets.source import Source, source_of
from cache.errors import UserError
from cache.files.names import name_of
from cache.images.decoding_memory import MAX_PIXELS

_READERS: dict[str, Callable[[Manifest, Path], Listing]] = {
    "split-file": split_file.read,
    "aircraft": aircraft.read,
    "imagenet": imagenet.read,
    "imagenet-variant": imagenet.read_variant,
    "folder": folder.read,
    "table": table.read,
    "list-file": list_file.read,
    "proposed-split": proposed_split.read,
    "digits": digits.read,
}


class NoDatasetError(UserError):
    """Nothing goes by the name: no folder, no table, no declared dataset."""


def data_root(option: Path | None) -> Path:
    """The folder that datasets lie in: the option, else $FEWSHOT_DATA, else ./data."""
    return (option or Path(os.environ.get("FEWSHOT_DATA") or "data")).expanduser()


def find(
    dataset: str | None,
    manifest: Path | None = None,
    *,
    root: Path | None = None,
    download: bool = False,
    max_pixels: int = MAX_PIXELS,
    multi_label: bool = False,
) -> Source:
    """The dataset that a user means, found on disk.

    Args:
        dataset: A name or alias, a folder of images, or a table of them; the last two also by the
            name that they have here or in `root`, which is the name of their store.
        manifest: A manifest of the user's own; `dataset` may then be left out.
        root: Where named datasets lie; see `data_root`.
        download: Let torchvision download what is not there.
        max_pixels: Width times height of the largest image that is decoded.
        multi_label: Take several rows of one image in a table for several labels.

    Raises:
        NoDatasetError: Nothing goes by the name.
        UserError: Nothing was named, or what was is not on disk; or it is no table and is to have
            several labels.
    """
    source = _found(dataset, manifest, root, download, multi_label)
    if multi_label and not source.multi_label:
        raise UserError(
            f"--multi-label is for tables of paths and labels; {source.dataset} is none; give a "
            "CSV or JSON lines"
        )
    return replace(source, max_pixels=max_pixels)


def _found(
    dataset: str | None,
    manifest: Path | None,
    root: Path | None,
    download: bool,
    multi_label: bool,
) -> Source:
    if dataset is None and manifest is None:
        raise UserError("say which dataset: --dataset NAME, FOLDER or TABLE, or --manifest FILE")
    if manifest is None and is_pattern(dataset or ""):
        shards = dataset or ""
        address = shards if is_remote(shards) else str(Path(shards).absolute())
        return source_of(
            dataset_name(shards), sharded.read_pattern(shards), exif=False, place=address
        )
    path = Path(dataset or "")
    if manifest is None and path.is_file() and path.suffix.lower() not in TABLES:
        raise UserError(f"{dataset} is no table; a table of images ends in {', '.join(TABLES)}")
    if manifest is None and path.suffix.lower() in TABLES:
        return resolve_table(path, multi_label=multi_label)
    try:
        declared = load_manifest(dataset or "", manifest)
    except UserError as error:
        if manifest is not None:
            raise
        for place in (path, data_root(root) / path):
            if place.is_dir():
                return resolve_folder(place, multi_label=multi_label)
            for table_of_it in (place.with_name(f"{place.name}{ending}") for ending in TABLES):
                if table_of_it.is_file():
                    return resolve_table(table_of_it, multi_label=multi_label)
        if path.name != dataset:
            raise NoDatasetError(
                f"no folder or table at {dataset}; give one that there is"
            ) from None
        raise NoDatasetError(
            f"{error}; nor is it a folder or table here or in {data_root(root)} (--data-root)"
        ) from None
    return resolve(declared, data_root(root), download=download)


def resolve(manifest: Manifest, data_root: Path, *, download: bool = False) -> Source:
    """The dataset that a manifest declares, as it lies on disk.

    CoOp's layout comes first. Where its split file is not there, torchvision's copy is taken, with
    a split that the source's `origin` and `notes` say is another.

    Args:
        manifest: What to look for.
        data_root: Where.
        download: Let torchvision download what is not there.

    Raises:
        UserError: It is not there, and how to get it; or what is there is not what it should be.
    """
    kind = manifest.layout.kind
    if kind != "digits" and not data_root.is_dir() and not download:
        raise UserError(
            f"no data root at {data_root}; give the folder that holds datasets with --data-root or "
            f"FEWSHOT_DATA; fewshot datasets {manifest.name} says how to get this one"
        )
    place = from_torchvision.place(manifest)
    sizes: Mapping[str, int] = {}
    content: Mapping[str, str] = {}
    if kind == "digits" or _wanted(manifest, data_root).exists():
        listing = _READERS[kind](manifest, data_root)
        sizes, content = manifest.sizes, manifest.content
    elif place and (download or (data_root / place.marker).exists()):
        listing = from_torchvision.read(manifest, data_root, download=download)
        listing = replace(listing, notes=(*listing.notes, _other_split(manifest, data_root)))
    else:
        raise _absent(manifest, data_root)
    if manifest.n_classes not in (None, len(listing.classnames)):
        raise UserError(
            f"{manifest.name} must have {manifest.n_classes} classes, got "
            f"{len(listing.classnames)} from {listing.origin} in {listing.root}"
        )
    return replace(
        source_of(manifest.name, listing, exif=kind in ("folder", "table")),
        templates=manifest.templates,
        template_sets=manifest.template_sets,
        manifest_digest=manifest.digest,
        sizes=sizes,
        content=content,
    )


def resolve_folder(path: Path, name: str = "", *, multi_label: bool = False) -> Source:
    """A user's folder as a dataset, called after it: shards, a table, or class folders."""
    place = "" if name else str(path.absolute())
    listing = sharded.read_folder(str(path.absolute())) if path.is_dir() else None
    if listing is not None:
        return source_of(name or name_of(path), listing, exif=False, place=place)
    listing = read_described(path, multi_label=multi_label) if path.is_dir() else None
    listing = listing or folder.read_folder(path)
    return source_of(name or name_of(path), listing, exif=True, place=place)


def resolve_table(path: Path, name: str = "", *, multi_label: bool = False) -> Source:
    """A user's CSV or JSON lines as a dataset, called after the file."""
    listing = table.read_table(path, multi_label=multi_label)
    place = "" if name else str(path.absolute())
    return source_of(name or name_of(path.with_suffix("")), listing, exif=True, place=place)


def dataset_status(manifest: Manifest, data_root: Path) -> str:
    """Say in a few words if a dataset is on disk; looks at two or three paths only."""
    kind, layout = manifest.layout.kind, manifest.layout
    if kind == "digits":
        return "bundled"
    listed = _wanted(manifest, data_root).exists()
    images = (data_root / layout.directory / layout.images).is_dir()
    place = from_torchvision.place(manifest)
    if listed and (images or kind == "table"):
        return "on disk (CoOp split)" if kind == "split-file" else "on disk"
    if listed:
        return "split file without images"
    if place and (data_root / place.marker).exists():
        return f"on disk ({'torchvision split' if place.splits else 'own split'})"
    return "images without split file" if layout.images and images else "not on disk"


def _wanted(manifest: Manifest, data_root: Path) -> Path:
    """The file or folder whose presence says that a dataset lies in its declared layout."""
    layout = manifest.layout
    directory = data_root / layout.directory
    match layout.kind:
        case "split-file" | "table" | "proposed-split":
            return directory / layout.split_file
        case "list-file":
            return list_file.first_file(manifest, data_root)
        case "aircraft":
            return directory / "variants.txt"
        case "imagenet":
            return directory / layout.images / "val"
        case _:
            return directory / layout.images


def _other_split(manifest: Manifest, data_root: Path) -> str:
    sizes = ", ".join(f"{split} {size:,}" for split, size in manifest.sizes.items())
    return (
        f"no {_wanted(manifest, data_root)}, so this is not CoOp's split ({sizes}) and few-shot "
        "numbers do not compare with published ones"
    )


def _absent(manifest: Manifest, data_root: Path) -> UserError:
    place = from_torchvision.place(manifest)
    other = f", nor torchvision's copy at {data_root / place.marker}" if place else ""
    how = f"; to get it: {' '.join(manifest.obtain.split())}" if manifest.obtain else ""
    layout = manifest.layout
    images = data_root / layout.directory / layout.images
    split_missing = layout.kind == "split-file" and layout.images and images.is_dir()
    what = "has images but no split file" if split_missing else "is not"
    return UserError(f"{manifest.name} {what} at {_wanted(manifest, data_root)}{other}{how}")
