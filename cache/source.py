"""A dataset ready to be encoded: its classes, its rows per split, and how to read its images."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from cache import decode
from cache.decoding_memory import MAX_PIXELS
from cache.errors import UserError
from cache.items import chosen_items
from cache.layouts import (
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
from cache.layouts import torchvision_datasets as from_torchvision
from cache.layouts.described_folder import read_described
from cache.layouts.shard_names import dataset_name, is_pattern
from cache.layouts.table_file import ENDINGS as TABLES
from cache.listing import SPLIT_RULE, Listing
from cache.listing import Item as Item
from cache.manifest import load_manifest
from cache.manifest_file import Manifest
from cache.names import name_of
from cache.reader import Content, Files, Reader
from cache.turbo_jpeg import Pixels

DEFAULT_TEMPLATES = ("a photo of a {}.",)
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


@dataclass(frozen=True)
class Source:
    """A dataset on disk. Plain data, so that it goes to other processes.

    Attributes:
        dataset: Its name.
        root: What the items' paths are relative to.
        classnames: By class id, as published: underscores are kept, names may repeat.
        splits: "train", "val" and "test", those that exist, each in its published order.
        templates: Prompts, with {} for the class name.
        origin: Where the split came from, in words.
        exif: Whether images are turned as their EXIF orientation says: yes for users' own
            photographs, no for benchmarks, whose authors did not.
        manifest_digest: sha256 of the manifest, in hex; empty where there is none.
        template_sets: Further sets of prompts that the manifest has, by name.
        class_ids: ImageNet's id of each class, where the classes are ImageNet's.
        sizes: Rows that the manifest says each split must have; empty where it does not say.
        content: Split -> digest of its images' bytes, as the manifest says.
        notes: What a reader should know about how it was found, one line each.
        drawn: Whether nobody gave a split, and this one is our own.
        max_pixels: Width times height of the largest image that is decoded.
        reader: What reads the images; None for files below `root`.
        multi_label: Whether an image may have several labels.
        unlabeled: Whether every label is -1, for nobody has labeled the images.
    """

    dataset: str
    root: Path
    classnames: tuple[str, ...]
    splits: Mapping[str, Sequence[Item]]
    templates: tuple[str, ...]
    origin: str
    exif: bool = False
    manifest_digest: str = ""
    template_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    class_ids: tuple[int, ...] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    drawn: bool = False
    max_pixels: int = MAX_PIXELS
    reader: Reader | None = None
    multi_label: bool = False
    unlabeled: bool = False

    @property
    def images(self) -> Reader:
        """The reader of the images."""
        return self.reader or Files(self.root)

    def read(self, path: str) -> Image.Image:
        """The image at an item's path, as RGB; OSError where it cannot be read to the end."""
        with self.opened(path) as image:
            return image

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[Image.Image]:
        """The same, counted against the memory for decoded images until the block ends."""
        with self.decoded(self.images.content(path)) as image:
            yield image

    def decoded(self, content: Content) -> contextlib.AbstractContextManager[Image.Image]:
        """The image of a content that was read, counted against that memory as well."""
        return decode.opened(content, exif=self.exif, max_pixels=self.max_pixels)

    def decoded_pixels(self, content: Content) -> contextlib.AbstractContextManager[Pixels]:
        """The same as an array (H, W, 3), uint8, which `turbo_jpeg` decodes if it can."""
        return decode.opened_pixels(content, exif=self.exif, max_pixels=self.max_pixels)

    def size(self, path: str) -> int:
        """Bytes of an item's file; FileNotFoundError where there is none."""
        return self.images.stamp(path).size

    def changed_since(self, moment: int, split: str, rows: Iterable[int]) -> list[str]:
        """The paths of images whose files were modified after a moment, or are gone.

        Args:
            moment: Nanoseconds since the epoch.
            split: The split that they are of.
            rows: Their rows in it.
        """
        return self.images.changed_since(moment, [self.splits[split][row].path for row in rows])

    def require_one_label(self, what: str) -> None:
        """Raise unless each image has one label.

        Args:
            what: The work that needs it, for the message.

        Raises:
            UserError: An image may have several.
        """
        if self.multi_label:
            raise UserError(
                f"{what} needs one label of each image, and images of {self.dataset} may have "
                "several; for these there are extract, fit, bench and predict"
            )

    def check_file(self, path: str) -> None:
        """Raise OSError where an item's file is missing, no image, too large, or cut off.

        Or where a store could not hold its name.
        """
        if path.encode(errors="replace") != path.encode(errors="surrogatepass"):
            raise OSError("its name is no valid UTF-8; rename it")
        self.images.check(path, self.max_pixels)

    def without(self, paths: Iterable[str]) -> "Source":
        """The source less these paths, whose counts no longer need to be the manifest's."""
        gone = frozenset(paths)
        if not gone:
            return replace(self, sizes={})
        splits = {
            split: chosen_items(
                items, (row for row, item in enumerate(items) if item.path not in gone)
            )
            for split, items in self.splits.items()
        }
        return replace(self, splits=splits, sizes={}, content={})


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
        UserError: Nothing was named, or it is unknown, or not to be found; or it is no table and
            is to have several labels.
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
        return source_of(
            dataset_name(dataset or ""), sharded.read_pattern(dataset or ""), exif=False
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
            raise UserError(f"no folder or table at {dataset}; give one that there is") from None
        raise UserError(
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
    listing = sharded.read_folder(str(path.absolute())) if path.is_dir() else None
    if listing is not None:
        return source_of(name or name_of(path), listing, exif=False)
    listing = read_described(path, multi_label=multi_label) if path.is_dir() else None
    listing = listing or folder.read_folder(path)
    return source_of(name or name_of(path), listing, exif=True)


def resolve_table(path: Path, name: str = "", *, multi_label: bool = False) -> Source:
    """A user's CSV or JSON lines as a dataset, called after the file."""
    listing = table.read_table(path, multi_label=multi_label)
    return source_of(name or name_of(path.with_suffix("")), listing, exif=True)


def pooled(source: Source) -> Source:
    """The source with every labeled image for training, but those of a test split that was given.

    For users who need a classifier rather than a benchmark, and judge it by cross-validation. It
    has another name, so that its store lies beside that of the source as it was.
    """
    kept = {} if source.drawn else {k: v for k, v in source.splits.items() if k == "test"}
    items = [item for split, found in source.splits.items() if split not in kept for item in found]
    train = tuple(sorted(items, key=lambda item: (item.label, item.path)))
    return replace(
        source,
        dataset=f"{source.dataset}-all",
        splits={"train": train, **kept},
        origin=f"{source.origin.removesuffix(f', {SPLIT_RULE}')}, all for training",
        sizes={},
        content={},
        drawn=False,
    )


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


def source_of(dataset: str, listing: Listing, *, exif: bool) -> Source:
    """The dataset of that name that a listing lists; `exif` as in `Source`."""
    return Source(
        dataset=dataset,
        root=listing.root.absolute(),
        classnames=listing.classnames,
        splits=listing.splits,
        templates=listing.templates or DEFAULT_TEMPLATES,
        origin=listing.origin,
        exif=exif,
        class_ids=listing.class_ids,
        notes=listing.notes,
        drawn=listing.drawn,
        reader=listing.reader,
        multi_label=listing.multi_label,
    )


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
