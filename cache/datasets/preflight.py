"""Checks before hours of encoding: is the dataset what its user thinks it is?"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache.datasets.items import Item, Items
from cache.datasets.leaks import ascending_keys, leaks, n_repeats
from cache.datasets.preflight_report import MISSING, Preflight
from cache.datasets.source import Source
from cache.errors import count, none_can, printable
from cache.images.skipped import Skipped
from cache.progress import progress

_CHUNK = 256  # files per task of a thread
_NAMED = 5  # of many classes, how many are named


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
    keys = {split: ascending_keys(items) for split, items in source.splits.items()}
    return Preflight(
        source=source,
        counts=counts,
        problems=(
            *_class_problems(source),
            *_count_problems(source, counts),
            *_unreadable_problems(source, counts, unreadable),
            *leaks(source.splits, keys),
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
    with progress(f"{source.title}: files", sum(map(len, rows.values()))) as advance:
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
        repeated = n_repeats(keys[split])
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
