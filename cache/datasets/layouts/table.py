"""A user's table of images: CSV, TSV or JSON lines with `path`, `label` and perhaps `split`.

`conventions` knows other names of these columns. A label is a class name; labels that are exactly
the numbers 0..C-1 are class ids, and `classname` may name them. Paths are relative to the table's
folder. An image has several labels where a cell has semicolons between them, as in `cat;dog`.
"""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.datasets.image_search import folders
from cache.datasets.layouts.conventions import COLUMNS, IMAGES, columns, extension, split_of
from cache.datasets.layouts.split_file import read_declared
from cache.datasets.layouts.table_file import LABEL_SEPARATOR, read_rows
from cache.datasets.listing import SPLIT_RULE, Item, Listing, split_items
from cache.datasets.manifest_file import SPLITS, Manifest
from cache.errors import UserError, count, excerpt, printable


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the table a user's own manifest names."""
    layout = manifest.layout
    file = data_root / layout.directory / layout.split_file
    read_declared(file, layout.checksum)
    return read_table(file, manifest.rename)


def read_table(
    file: Path, rename: Mapping[str, str] | None = None, *, multi_label: bool = False
) -> Listing:
    """The listing of a table, in its own order.

    Args:
        file: `.csv`, `.tsv`, `.jsonl` or `.ndjson`.
        rename: Class name (or id, as text, where there are no names) -> class name.
        multi_label: Take several rows of one image for several labels; that is so, too, where a
            cell has semicolons between labels.

    Raises:
        UserError: With the line that is wrong.
    """
    rows, notes = _rows(file)
    several = multi_label or any(LABEL_SEPARATOR in row.label for row in rows)
    if several:
        rows = list(_one_label_each(rows))
        why = "as asked" if multi_label else "there are semicolons between labels"
        notes.append(f"images of {file.name} may have several labels: {why}")
    rows, repeated = _once(rows, several)
    if repeated:
        rows_repeat = count(repeated, "row repeats", "rows repeat")
        notes.append(f"{rows_repeat} an image of {file.name}, which counts once")
    classes, about = _classes(file, rows)
    notes += about
    names = dict.fromkeys(classes, "")
    for row in rows:
        if row.classname and names[row.label] not in ("", row.classname):
            raise row.error(
                f"class {excerpt(row.label)} is called {excerpt(row.classname)} here and "
                f"{excerpt(names[row.label])} "
                "before; give it one name"
            )
        names[row.label] = names[row.label] or row.classname
    classnames = [names[label] or label for label in classes]
    ids = {label: i for i, label in enumerate(classes)}
    images: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        images.setdefault((_relative(row, file.parent), row.split_name), []).append(row)
    before, after = _completion(file.parent, next(iter(images))[0])
    if before or after:
        notes.append(f"paths stand for {before}PATH{after}")
    of_class = Counter(row.label for row in rows)
    items = []
    for (path, _), of_image in images.items():
        rarest = min(of_image, key=lambda row: of_class[row.label])
        more = {ids[row.label] for row in of_image} - {ids[rarest.label]}
        items.append(Item(f"{before}{path}{after}", ids[rarest.label], tuple(sorted(more))))
    rows = [of_image[0] for of_image in images.values()]
    drawn = not any(row.split for row in rows)
    return Listing(
        file.parent,
        tuple((rename or {}).get(name, name) for name in classnames),
        split_items(items) if drawn else _given_splits(rows, items),
        f"{file.name}, {SPLIT_RULE}" if drawn else file.name,
        tuple(notes),
        drawn=drawn,
        multi_label=several,
    )


@dataclass(frozen=True)
class _Row:
    """One line of a table, as text."""

    place: str  # file and line, for messages
    path: str
    label: str
    split: str
    classname: str

    @property
    def split_name(self) -> str:
        return split_of(self.split) or self.split

    def error(self, what: str) -> UserError:
        return UserError(f"{self.place}: {what}")


def _rows(file: Path) -> tuple[list[_Row], list[str]]:
    parsed, header, found_out = read_rows(file)
    if not parsed:
        raise UserError(f"{file} has no rows; expected path, label and perhaps split")
    taken = columns(header)
    missing = [name for name in ("path", "label") if name not in taken]
    if missing:
        shown = ", ".join(excerpt(name) for name in header[:8]) or "none"
        usual = "; ".join(
            f"{name} may be called {', '.join(COLUMNS[name][:6])}" for name in missing
        )
        wanted = " and ".join(missing)
        raise UserError(f"{file}: expected a column for {wanted}, got the columns {shown}; {usual}")
    others = [f"{theirs!r} as {ours}" for ours, theirs in taken.items() if theirs.lower() != ours]
    notes = [*found_out, *([f"columns taken: {', '.join(others)}"] if others else [])]
    rows = []
    for number, fields in parsed:
        place = f"{file}, line {number}"
        values = {ours: fields.get(theirs, "") for ours, theirs in taken.items()}
        lacking = [name for name in ("path", "label") if not values[name]]
        if lacking:
            raise UserError(f"{place}: expected path and label, got no {' and no '.join(lacking)}")
        rows.append(
            _Row(
                place, values["path"], values["label"], values.get("split", ""),
                values.get("classname", ""),
            )
        )  # fmt: skip
    if taken.get("split", "split").lower() != "split" and not all(split_of(r.split) for r in rows):
        rows = [_Row(r.place, r.path, r.label, "", r.classname) for r in rows]
        notes.append(f"the column {taken['split']!r} names no splits and is not used")
    return rows, notes


def _one_label_each(rows: Sequence[_Row]) -> Iterator[_Row]:
    """The rows, those of several labels as a row for each."""
    for row in rows:
        labels = [part.strip() for part in row.label.split(LABEL_SEPARATOR) if part.strip()]
        names = [part.strip() for part in row.classname.split(LABEL_SEPARATOR)]
        names = names if row.classname else [""] * len(labels)
        if not labels:
            raise row.error("expected path and label, got no label")
        if len(names) != len(labels):
            named = count(len(names), "class name")
            raise row.error(
                f"expected a class name for each label, got {count(len(labels), 'label')} and "
                f"{named}; put semicolons between both"
            )
        for label, name in zip(labels, names, strict=True):
            yield replace(row, label=label, classname=name)


def _once(rows: list[_Row], several: bool) -> tuple[list[_Row], int]:
    """Each label of an image once per split, and how many rows were left out for that.

    Raises:
        UserError: An image has several labels and is to have one.
    """
    kept: dict[tuple[str, str, str], _Row] = {}
    labels: dict[str, _Row] = {}
    for row in rows:
        path = posixpath.normpath(row.path.replace("\\", "/"))
        first = labels.setdefault(path, row)
        if first.label != row.label and not several:
            raise row.error(
                f"{excerpt(row.path)} has the label {excerpt(row.label)}, and "
                f"{excerpt(first.label)} in {first.place}; an image has one class: remove one of "
                "the two lines, or extract with --multi-label where images have several"
            )
        kept.setdefault((path, row.split_name, row.label), row)
    return list(kept.values()), len(rows) - len(kept)


def _classes(file: Path, rows: list[_Row]) -> tuple[list[str], list[str]]:
    """The labels as written, by class id, and what to tell the user about them."""
    labels = {row.label for row in rows}
    numbers = {label for label in labels if re.fullmatch("[0-9]{1,9}", label)}
    if numbers < labels:
        n = sum(row.label in numbers for row in rows)
        some = count(n, "label is a number", "labels are numbers")
        mixed = f"in {file.name}, {some} and the rest names: all are taken as names"
        return sorted(labels), [mixed] if numbers else []
    in_order = sorted(labels, key=lambda label: (int(label), label))
    if in_order == [str(i) for i in range(len(in_order))] or any(row.classname for row in rows):
        return in_order, []
    shown = ", ".join(printable(label[:60]) for label in in_order[:5]) + (
        ", ..." if len(in_order) > 5 else ""
    )
    expected = f"0..{len(in_order) - 1}"
    return in_order, [f"labels of {file.name} are not {expected}, so they are names: {shown}"]


def _given_splits(rows: list[_Row], items: list[Item]) -> dict[str, tuple[Item, ...]]:
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for row, item in zip(rows, items, strict=True):
        split = split_of(row.split)
        if split is None:
            raise row.error(
                f"split must be train, val or test on every line, got {excerpt(row.split)}"
            )
        splits[split].append(item)
    return {split: tuple(chosen) for split, chosen in splits.items() if chosen}


def _relative(row: _Row, folder: Path) -> str:
    path = row.path.replace("\\", "/")  # a table written on Windows
    if posixpath.isabs(path):
        if not Path(path).is_relative_to(folder.resolve()):
            raise row.error(
                f"path must be relative to the table's folder {folder}, got {excerpt(path)}"
            )
        path = Path(path).relative_to(folder.resolve()).as_posix()
    return posixpath.normpath(path)


def _completion(folder: Path, path: str) -> tuple[str, str]:
    """The text before and after paths, where a table has ids of images in a folder beside."""
    if not folder.is_dir() or os.path.lexists(folder / path):
        return "", ""
    endings = ["", *(f".{ending}" for ending in sorted(IMAGES) if not extension(path))]
    for before in ("", *(f"{name}/" for name in folders(folder))):
        for after in endings:
            # Not pathlib's, which raises for a name that is too long to exist.
            if os.path.isfile(folder / f"{before}{path}{after}"):  # noqa: PTH113
                return before, after
    return "", ""
