"""A dataset in shards: which shards there are, their splits, and labels into classes."""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.datasets.addresses import exists, expand, is_remote, read, stamp
from cache.datasets.items import Item, Items
from cache.datasets.layouts.conventions import split_of
from cache.datasets.layouts.shard_names import split_in
from cache.datasets.listing import SPLIT_RULE, Listing, split_items
from cache.datasets.manifest_file import SPLITS
from cache.datasets.reader import Reader, Stamp
from cache.errors import UserError, count, excerpt

CLASSNAMES = ("classnames.txt", "classes.txt")
TEMPLATES = "zeroshot_classification_templates.txt"  # of CLIP_benchmark, with {c} for the name
THREADS = 8  # that list shards


class ShardedImage(NamedTuple):
    """An image of a shard.

    Attributes:
        path: Relative to the folder of all shards; begins with the shard's own path.
        label: As written; empty where there is none.
        classname: The label's name, where the sample says it.
    """

    path: str
    label: str
    classname: str = ""


class ShardRows(NamedTuple):
    """The images of a shard in columns.

    Attributes:
        items: Paths, and for labels numbers of `labels`.
        labels: As written.
        classnames: Of each label, as its samples say; two at most, for more say as little.
    """

    items: Items
    labels: tuple[str, ...]
    classnames: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, images: Iterable[ShardedImage]) -> "ShardRows":
        """The columns of images, of which one at a time is needed."""
        numbers: dict[str, int] = {}
        named: list[set[str]] = []
        codes: list[int] = []

        def paths() -> Iterator[str]:
            for path, label, classname in images:
                number = numbers.setdefault(label, len(named))
                if number == len(named):
                    named.append(set())
                if len(named[number]) < 2:
                    named[number].add(classname)
                codes.append(number)
                yield path

        items = Items.of(paths(), ())
        return cls(
            items.relabeled(np.array(codes, np.int32)), tuple(numbers), tuple(map(frozenset, named))
        )


@dataclass(frozen=True)
class Shards:
    """The shards of a dataset.

    Attributes:
        root: The folder that all lie in, as a path or a URL that ends with "/".
        paths: Relative to it, in order.
        stamps: Of each, when they were listed.
    """

    root: str
    paths: tuple[str, ...]
    stamps: tuple[Stamp, ...]

    @classmethod
    def of(cls, addresses: Sequence[str]) -> "Shards":
        """The shards at these addresses.

        Raises:
            UserError: One is not there, or cannot be reached.
        """

        def ask(address: str) -> Stamp | None:
            try:
                return stamp(address)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise UserError(f"cannot read {error}") from error

        with ThreadPoolExecutor(THREADS) as pool:
            stamps = dict(zip(addresses, pool.map(ask, addresses), strict=True))
        lost = [address for address, found in stamps.items() if found is None]
        if lost:
            raise UserError(
                f"{count(len(lost), 'shard is', 'shards are')} not there, the first {lost[0]}; "
                "fetch it, or give a pattern of those that are there"
            )
        root = _folder_of(addresses)
        known = tuple(found for found in stamps.values() if found is not None)
        return cls(root, tuple(address.removeprefix(root) for address in stamps), known)

    def address(self, number: int) -> str:
        """The whole address of a shard."""
        return f"{self.root}{self.paths[number]}"

    def changed(self) -> set[int]:
        """The numbers of shards that are not as they were listed."""

        def ask(number: int) -> bool:
            try:
                return stamp(self.address(number)) != self.stamps[number]
            except OSError:
                return True

        with ThreadPoolExecutor(THREADS) as pool:
            changed = list(pool.map(ask, range(len(self.paths))))
        return set(np.flatnonzero(changed).tolist())


def addresses_of(pattern: str, ending: str) -> list[str]:
    """The shards of a pattern, or below a folder or URL that ends with "/", by name.

    Raises:
        UserError: There is none, or one ends otherwise.
    """
    found = expand(pattern)
    other = [address for address in found if not address.lower().endswith(ending)]
    if other:
        raise UserError(f"{other[0]} is no shard; all must end in {ending}")
    if len(set(found)) < len(found):
        raise UserError(f"{pattern} names a shard twice")
    return found


def listing_of(
    shards: Shards,
    listed: Sequence[ShardRows],
    reader: Reader,
    names: Sequence[str] = (),
    *,
    labeled: bool = True,
) -> Listing:
    """The listing of what each shard holds.

    Args:
        shards: Where they lie.
        listed: The images of each shard, in its order.
        reader: What reads them.
        names: Class names by label, where the shards themselves have them.
        labeled: False to put all into a train split with -1 for each label, without class names.

    Raises:
        UserError: Labels without names, or names of only some shards say a split.
    """
    if not any(len(rows.items) for rows in listed):
        raise UserError(f"no image in {shards.address(0)} and {len(shards.paths) - 1:,} others")
    what = count(len(shards.paths), "shard")
    if not labeled:
        every = Items.joined([rows.items for rows in listed])
        splits: Mapping[str, Sequence[Item]] = {
            "train": every.relabeled(np.full(len(every), -1, np.int32))
        }
        return Listing(Path(shards.root), (), splits, f"{what}, unlabeled", reader=reader)
    classnames, ids = _classes(listed, names or _beside(shards.root, *CLASSNAMES), shards)
    items = [
        rows.items.relabeled(np.array([ids[x] for x in rows.labels], np.int32)[rows.items.labels])
        for rows in listed
    ]
    said = [split_in(path) for path in shards.paths]
    if None in said and any(said):
        raise UserError(
            f"the name of {shards.address(said.index(None))} says no split, and those of other "
            "shards do; give shards that say train, val or test, or such that do not"
        )
    drawn = None in said
    splits = (
        split_items(Items.joined(items))
        if drawn
        else {
            split: Items.joined([i for i, of in zip(items, said, strict=True) if of == split])
            for split in SPLITS
            if split in said
        }
    )
    return Listing(
        Path(shards.root),
        classnames,
        splits,
        f"{what}, {SPLIT_RULE}" if drawn else what,
        drawn=drawn,
        reader=reader,
        templates=tuple(t.replace("{c}", "{}") for t in _beside(shards.root, TEMPLATES)),
    )


def _folder_of(addresses: Sequence[str]) -> str:
    """The folder that all addresses are in, with "/" at its end."""
    folders = [posixpath.dirname(address) for address in addresses]
    parts = [folder.split("/") for folder in dict.fromkeys(folders)]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    # A folder of one split is not what its paths are relative to.
    if len(common) > 1 and all(split_in(posixpath.basename(a)) is None for a in addresses):
        common = common[:-1] if split_of(common[-1]) else common
    return f"{'/'.join(common)}/" if common != [""] else ""


def _beside(root: str, *names: str) -> list[str]:
    """The lines of the first file of these names in the folder of the shards; none without it."""
    for name in names:
        address = f"{root}{name}"
        try:
            if exists(address):
                text = read(address).decode()
                return [line.strip() for line in text.splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"{address} is no text in UTF-8; get it again") from error
        except OSError as error:
            raise UserError(f"cannot read {error}") from error
    return []


def _classes(
    listed: Sequence[ShardRows], names: Sequence[str], shards: Shards
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names by id, and the id of each label as written."""
    first: dict[str, str] = {}  # label -> the path of an image that has it
    called: dict[str, set[str]] = {}
    for rows in listed:
        for number, (label, some) in enumerate(zip(rows.labels, rows.classnames, strict=True)):
            called.setdefault(label, set()).update(some)
            if label not in first:
                first[label] = rows.items[int((rows.items.labels == number).argmax())].path
    if "" in first:
        raise UserError(
            f"{first['']} has no label; give it one in a .cls, a .json or a .txt beside it, or "
            "in a column called label; or extract with --unlabeled"
        )
    numbers = all(re.fullmatch("[0-9]{1,9}", label) for label in first)
    if names and numbers:
        ids = {label: int(label) for label in first}
        if wrong := [label for label, i in ids.items() if i >= len(names)]:
            raise UserError(
                f"{first[wrong[0]]}: label {wrong[0]} has no name, for there are "
                f"{len(names)}; labels start at 0"
            )
        return tuple(names), ids
    if names:
        known = {name: i for i, name in reversed(list(enumerate(names)))}
        if unknown := [label for label in first if label not in known]:
            raise UserError(
                f"{first[unknown[0]]}: {excerpt(unknown[0])} is none of the "
                f"{len(names)} class names"
            )
        return tuple(names), {label: known[label] for label in first}
    if not numbers:
        return tuple(sorted(first)), {label: i for i, label in enumerate(sorted(first))}
    in_order = sorted(first, key=int)
    if any(len(called[label]) > 1 or "" in called[label] for label in in_order):
        raise UserError(
            f"labels of {shards.address(0)} are numbers without names; put {CLASSNAMES[0]} into "
            f"{shards.root if is_remote(shards.root) else Path(shards.root)}, one name per line in "
            "the order of labels"
        )
    if [int(label) for label in in_order] != list(range(len(in_order))):
        raise UserError(
            f"labels of {shards.address(0)} are not 0..{len(in_order) - 1}; put {CLASSNAMES[0]} "
            "beside the shards, one name per line in the order of labels"
        )
    return tuple(min(called[label]) for label in in_order), {
        label: int(label) for label in in_order
    }
