"""Checks before hours of encoding: is the dataset what its user thinks it is?"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress, islice
from statistics import median

import numpy as np
from numpy.typing import NDArray

from cache.datasets.items import Item, Items, paths_of
from cache.datasets.path_index import path_keys
from cache.datasets.source import Source
from cache.errors import UserError, count, none_can, printable
from cache.images.skipped import Skipped, cannot_read, listed
from cache.progress import progress

_KEYS = 2**16  # keys of paths that are compared at once
_CHUNK = 256  # files per task of a thread
_NAMED = 5  # of many classes, how many are named
MISSING = "no such file"


@dataclass(frozen=True)
class Preflight:
    """The findings of `check`.

    Attributes:
        source: What was looked at.
        counts: Split -> images per class, by class id.
        problems: Whatever forbids encoding, one line each.
        notes: What to know before believing a number, one line each.
        unreadable: Images missing or damaged; they stop a run unless its user skips them.
    """

    source: Source
    counts: Mapping[str, tuple[int, ...]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[Skipped, ...]

    @property
    def missing(self) -> tuple[Skipped, ...]:
        """The unreadable images of which there is no file."""
        return tuple(image for image in self.unreadable if image.reason == MISSING)

    def report(self) -> str:
        """All of it for a terminal; the classes in full where there are at most twenty."""
        source = self.source
        n = len(source.classnames)
        if source.unlabeled:
            images = count(len(source.splits["train"]), "unlabeled image")
            first = f"{source.dataset}: {count(n, 'class', 'classes')}, {images} ({source.origin})"
            return "\n".join([first, *self._findings()])
        total = sum(map(len, source.splits.values()))
        size = f"{count(n, 'class', 'classes')}, {count(total, 'image')}"
        lines = [
            f"{source.dataset}: {size} ({source.origin})",
            "  split    images  per class min / median / max",
        ]
        for split, counts in self.counts.items():
            spread = f"{min(counts):,} / {median(counts):,g} / {max(counts):,}"
            lines.append(f"  {split:<5} {len(source.splits[split]):>9,}  {spread}")
        lines += [f"  {row}" for row in (self._header(), *self._class_rows())]
        return "\n".join([*lines, *self._findings()])

    def _findings(self) -> Iterator[str]:
        yield from (f"problem: {problem}" for problem in self.problems)
        yield from (f"note: {note}" for note in self.notes)
        if self.unreadable:
            yield from listed(self.unreadable)

    def passed(self, *, skip_unreadable: bool) -> tuple[Source, tuple[Skipped, ...]]:
        """The source as it may be encoded, and the images left out of it.

        Raises:
            UserError: There are problems, or unreadable images that are not to be skipped.
        """
        if self.problems:
            problems = "; ".join(self.problems)
            raise UserError(f"{self.source.dataset} cannot be encoded: {problems}")
        if self.unreadable and not skip_unreadable:
            raise cannot_read(self.unreadable)
        return self.source.without(path for _, path, _ in self.unreadable), self.unreadable

    def table(self) -> str:
        """The label-name table in full: id, images per split, name."""
        return "\n".join([self._header(), *self._rows(range(len(self.source.classnames)))])

    def _class_rows(self) -> list[str]:
        n = len(self.source.classnames)
        if n <= 20:
            return self._rows(range(n))
        first, last = self._rows(range(3)), self._rows(range(n - 2, n))
        split, counts = next(iter(self.counts.items()))
        least = sorted(range(n), key=counts.__getitem__)[:3]
        named = ", ".join(f"{printable(self.source.classnames[c])} {counts[c]:,}" for c in least)
        return [*first, "...", *last, f"fewest {split} images: {named}"]

    def _header(self) -> str:
        return f"  id  {'  '.join(f'{split:>6}' for split in self.counts)}  class"

    def _rows(self, classes: Iterable[int]) -> list[str]:
        return [
            f"{c:>4}  {'  '.join(f'{counts[c]:>6,}' for counts in self.counts.values())}  "
            f"{printable(self.source.classnames[c])}"
            for c in classes
        ]


def check(
    source: Source,
    *,
    rows: Mapping[str, Sequence[int]] | None = None,
    workers: int = 8,
    advance: Callable[[int], None] = lambda n: None,
) -> Preflight:
    """A pre-flight report: classes, counts, and every file's existence and first bytes.

    Images are not decoded, so one that breaks off half-way shows only when it is encoded.

    Args:
        source: The dataset.
        rows: Split -> rows whose files are to be opened; None opens all.
        workers: Threads that open files.
        advance: Called with the number of files after each batch of them.
    """
    unreadable = tuple(_unreadable(source, rows, workers, advance))
    n_classes = len(source.classnames)
    counts = {split: _per_class(items, n_classes) for split, items in source.splits.items()}
    # A number for each path, for a set of ten million paths would take gigabytes.
    keys = {s: path_keys(paths_of(items), len(items)) for s, items in source.splits.items()}
    for some in keys.values():
        some.sort()
    return Preflight(
        source=source,
        counts=counts,
        problems=(
            *_class_problems(source),
            *_count_problems(source, counts),
            *_unreadable_problems(source, counts, unreadable),
            *_leaks(source, keys),
        ),
        notes=(*source.notes, *_notes(source, counts, keys)),
        unreadable=unreadable,
    )


def check_files(source: Source, train_rows: Sequence[int] | None = None) -> Preflight:
    """`check` with its progress shown, of every file or of some train images and all others.

    Args:
        source: The dataset.
        train_rows: The rows of the train split whose files are to be opened; None opens all.
    """
    rows: dict[str, Sequence[int]] = {
        split: range(len(items)) for split, items in source.splits.items()
    }
    if train_rows is not None:
        rows["train"] = train_rows
    with progress(f"{source.dataset}: files", sum(map(len, rows.values()))) as advance:
        return check(source, rows=rows, advance=advance)


def _per_class(items: Sequence[Item], n_classes: int) -> tuple[int, ...]:
    """(C,) images of each class; labels out of range count for none."""
    if isinstance(items, Items):
        labels = items.labels[_in_range(items.labels, n_classes)]
        return tuple(np.bincount(labels, minlength=n_classes).tolist())
    counted = Counter(label for item in items for label in item.labels)
    return tuple(counted[label] for label in range(n_classes))


def _in_range(labels: NDArray[np.int32], n_classes: int) -> NDArray[np.bool_]:
    return (labels >= 0) & (labels < n_classes)


def _out_of_range(items: Sequence[Item], n_classes: int) -> Sequence[Item]:
    """The items of which a label is no class."""
    if isinstance(items, Items):
        return items.chosen(np.flatnonzero(~_in_range(items.labels, n_classes)).tolist())
    return [i for i in items if not 0 <= min(i.labels) <= max(i.labels) < n_classes]


def _class_problems(source: Source) -> Iterator[str]:
    n_classes = len(source.classnames)
    if n_classes < 2:
        yield f"a classifier needs two classes at least, got {n_classes}"
    for split, items in () if source.unlabeled else source.splits.items():
        wrong = _out_of_range(items, n_classes)
        if wrong:
            yield (
                f"{count(len(wrong), f'{split} label is', f'{split} labels are')} out of range "
                f"0..{n_classes - 1}, first: "
                f"{wrong[0].label} of {wrong[0].path}"
            )


def _count_problems(source: Source, counts: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if not any(source.splits.values()):
        yield f"no images in {source.images.place('')}"
    for split in dict.fromkeys([*source.sizes, *source.splits]):
        got, expected = len(source.splits.get(split, ())), source.sizes.get(split, 0)
        if source.sizes and got != expected:
            yield f"{split} must have {count(expected, 'image')}, got {got:,}"
    empty = [c for c, n in enumerate(counts.get("train", ())) if n == 0]
    if empty and not source.unlabeled and not _published(source):
        yield (
            f"{_classes(source, empty)} without a train image; add at least one for each class, or "
            "remove the class"
        )


def _published(source: Source) -> bool:
    """True if the train split is what its manifest declares; then a class may have no image."""
    return source.sizes.get("train") == len(source.splits.get("train", ()))


def _unreadable_problems(
    source: Source, counts: Mapping[str, tuple[int, ...]], unreadable: Sequence[Skipped]
) -> Iterator[str]:
    """Skipping unreadable images must not empty a class or a split."""
    lost = {(image.split, image.path) for image in unreadable}
    if not lost:
        return
    folder = source.images.place("")
    for split, items in source.splits.items():
        there = [item for item in items if (split, item.path) not in lost]
        left = _per_class(there, len(source.classnames))
        if items and not there:
            yield f"{none_can(len(items), f'{split} image')} be read; is {folder} right?"
        elif split == "train":
            pairs = zip(counts[split], left, strict=True)
            emptied = [c for c, (before, after) in enumerate(pairs) if before and not after]
            if emptied:
                yield f"{_classes(source, emptied)} with no readable train image"


def _leaks(source: Source, keys: Mapping[str, NDArray[np.uint64]]) -> Iterator[str]:
    splits = list(source.splits)
    for i, one in enumerate(splits):
        for other in splits[i + 1 :]:
            alike = _in_both(keys[one], keys[other])
            if not len(alike):
                continue
            first, second = (_with_keys(source.splits[s], alike) for s in (one, other))
            both = sorted(first & second)
            if both:
                images_are = count(len(both), "image is", "images are")
                yield f"{images_are} in {one} and in {other}, first: {both[0]}"


def _in_both(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys that two ascending lists share, found without a copy of either."""
    if not len(other):
        return other
    found = []
    for start in range(0, len(one), _KEYS):
        some = one[start : start + _KEYS]
        at = np.minimum(np.searchsorted(other, some), len(other) - 1)
        found.append(some[other[at] == some])
    return np.concatenate(found) if found else one


def _with_keys(items: Sequence[Item], keys: NDArray[np.uint64]) -> set[str]:
    """The paths that have one of the keys."""
    paths, found = paths_of(items), set[str]()
    while some := list(islice(paths, _KEYS)):
        found.update(compress(some, np.isin(path_keys(some), keys)))
    return found


def _notes(
    source: Source,
    counts: Mapping[str, tuple[int, ...]],
    keys: Mapping[str, NDArray[np.uint64]],
) -> Iterator[str]:
    for name, times in Counter(source.classnames).items():
        if times > 1:
            ids = [str(c) for c, other in enumerate(source.classnames) if other == name]
            yield f"classes {' and '.join(ids)} are both called {name!r}; they stay apart by id"
    for names in _alike(source.classnames):
        yield (
            f"classes called {' and '.join(map(ascii, names))} have the same prompts; if they are "
            "one class, put their images together"
        )
    for split in source.splits:
        repeated = int(np.sum(keys[split][1:] == keys[split][:-1]))
        if repeated:
            rows_repeat = count(repeated, f"{split} row repeats", f"{split} rows repeat")
            yield f"{rows_repeat} an image of the same split"
        empty = [c for c, n in enumerate(counts[split]) if n == 0]
        if empty and (split != "train" or _published(source)):
            yield f"{_classes(source, empty)} without a {split} image"


def _alike(classnames: Iterable[str]) -> Iterator[list[str]]:
    """Names that differ, but not to CLIP, whose tokenizer knows neither case nor how é is coded."""
    by_prompt: dict[str, list[str]] = {}
    for name in dict.fromkeys(classnames):
        spoken = unicodedata.normalize("NFC", name.replace("_", " ")).lower()
        by_prompt.setdefault(" ".join(spoken.split()), []).append(name)
    return (names for names in by_prompt.values() if len(names) > 1)


def _classes(source: Source, ids: Sequence[int]) -> str:
    named = ", ".join(printable(source.classnames[c]) for c in ids[:_NAMED])
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return f"{count(len(ids), 'class', 'classes')} ({named}{more})"


def _unreadable(
    source: Source,
    rows: Mapping[str, Sequence[int]] | None,
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[Skipped]:
    def faults(batch: Sequence[tuple[str, str]]) -> list[Skipped]:
        found = []
        for split, path in batch:
            try:
                source.check_file(path)
            except FileNotFoundError:
                found.append(Skipped(split, path, MISSING))
            except OSError as error:
                found.append(Skipped(split, path, str(error)))
        return found

    files = (
        (split, items[row].path)
        for split, items in source.splits.items()
        for row in (range(len(items)) if rows is None else rows.get(split, ()))
    )
    batches = iter(lambda: list(islice(files, _CHUNK)), [])
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while some := list(islice(batches, 4 * max(1, workers))):  # not all at once
            for batch, found in zip(some, pool.map(faults, some), strict=True):
                advance(len(batch))
                yield from found
