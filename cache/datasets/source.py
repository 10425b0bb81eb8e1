"""A dataset ready to be encoded: its classes, its rows per split, and how to read its images."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from cache.datasets.items import chosen_items
from cache.datasets.listing import SPLIT_RULE, Listing
from cache.datasets.listing import Item as Item
from cache.datasets.reader import Content, Files, Reader
from cache.errors import UserError
from cache.images import decode
from cache.images.decoding_memory import MAX_PIXELS
from cache.images.turbo_jpeg import Pixels

DEFAULT_TEMPLATES = ("a photo of a {}.",)


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
        exif: True if images are turned as their EXIF orientation says: yes for users' own
            photographs, no for benchmarks, whose authors did not.
        manifest_digest: sha256 of the manifest, in hex; empty where there is none.
        template_sets: Further sets of prompts that the manifest has, by name.
        class_ids: ImageNet's id of each class, where the classes are ImageNet's.
        sizes: Rows that the manifest says each split must have; empty where it does not say.
        content: Split -> digest of its images' bytes, as the manifest says.
        notes: What a reader should know about how it was found, one line each.
        drawn: True if nobody gave a split, and this one is our own.
        max_pixels: Width times height of the largest image that is decoded.
        reader: What reads the images; None for files below `root`.
        multi_label: True if an image may have several labels.
        unlabeled: True if every label is -1, for nobody has labeled the images.
        place: What `resolving.find` finds it by from any directory: a folder, a table or shards of
            the user's own; empty where that is a name, or not all there is to it.
        pooled_from: The name before its splits were pooled; empty where they were not.
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
    place: str = ""
    pooled_from: str = ""

    @property
    def title(self) -> str:
        """The name for people, who know their folder and not the store of its pooled images."""
        return self.pooled_from or self.dataset

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
                f"{what} needs one label of each image, and images of {self.title} may have "
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
        place="",
        pooled_from=source.dataset,
    )


def source_of(dataset: str, listing: Listing, *, exif: bool, place: str = "") -> Source:
    """The dataset of that name that a listing lists; `exif` and `place` as in `Source`."""
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
        place=place,
    )
