"""A user's table of images: CSV, TSV or JSON lines with `path`, `label` and perhaps `split`.

A label is a class name, or the class id where all labels are whole numbers; `classname` may then
name the ids. Paths are relative to the table's folder.
"""

import csv
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.errors import UserError
from cache.layouts.folder import SPLIT_NAMES
from cache.layouts.split_file import verify_checksum
from cache.listing import SPLIT_RULE, Item, Listing, split_items
from cache.manifest import SPLITS, Manifest


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the table a user's own manifest names."""
    layout = manifest.layout
    file = data_root / layout.directory / layout.split_file
    verify_checksum(file, file.read_bytes(), layout.checksum)
    return read_table(file, manifest.rename)


def read_table(file: Path, rename: Mapping[str, str] | None = None) -> Listing:
    """The listing of a table, in its own order.

    Args:
        file: `.csv`, `.tsv`, `.jsonl` or `.ndjson`.
        rename: Class name (or id, as text, where there are no names) -> class name.

    Raises:
        UserError: With the line that is wrong.
    """
    rows = list(_rows(file))
    if not rows:
        raise UserError(f"{file} has no rows; expected path, label and perhaps split")
    ids, notes = _class_ids(file, rows)
    names = dict.fromkeys(ids.values(), "")
    for row in rows:
        label = ids[row.label]
        if row.classname and names[label] not in ("", row.classname):
            raise row.error(
                f"class {row.label} is called {row.classname!r} here and {names[label]!r} before"
            )
        names[label] = names[label] or row.classname
    raw = {label: names.get(label) or key for key, label in ids.items()}
    n_classes = max(ids.values()) + 1
    classnames = tuple(raw.get(label, str(label)) for label in range(n_classes))
    items = [Item(_relative(row, file.parent), ids[row.label]) for row in rows]
    if any(row.split for row in rows):
        splits = _given_splits(rows, items)
        origin = file.name
    else:
        splits = split_items(items)
        origin = f"{file.name}, {SPLIT_RULE}"
    renamed = tuple((rename or {}).get(name, name) for name in classnames)
    drawn = not any(row.split for row in rows)
    return Listing(file.parent, renamed, splits, origin, notes, drawn=drawn)


@dataclass(frozen=True)
class _Row:
    """One line of a table, as text."""

    place: str  # file and line, for messages
    path: str
    label: str
    split: str
    classname: str

    def error(self, what: str) -> UserError:
        return UserError(f"{self.place}: {what}")


def _rows(file: Path) -> Iterator[_Row]:
    for number, fields in _parsed(file):
        place = f"{file}, line {number}"
        missing = [column for column in ("path", "label") if not fields.get(column)]
        if missing:
            raise UserError(f"{place}: expected path and label, got no {' and no '.join(missing)}")
        yield _Row(
            place,
            fields["path"],
            fields["label"],
            fields.get("split", "").lower(),
            fields.get("classname", ""),
        )


def _parsed(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of every row, whatever the format."""
    kind = file.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise UserError(f"{file} must end in .csv, .tsv or .jsonl, got {kind or 'no ending'!r}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if kind in (".csv", ".tsv"):
                table = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
                for row in table:
                    yield table.line_num, _texts(row)
            else:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, _texts(_object(line, f"{file}, line {number}"))
    except OSError as error:
        raise UserError(f"cannot read the table {file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a text table in UTF-8: {error}") from error


def _object(line: str, place: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f'{place}: expected an object like {{"path": ..., "label": ...}}')
    return value


def _texts(row: Mapping[str, object]) -> dict[str, str]:
    return {str(k).strip(): "" if v is None else str(v).strip() for k, v in row.items()}


def _class_ids(file: Path, rows: list[_Row]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label as written -> class id, and what to tell the user about it."""
    numbers = [row for row in rows if re.fullmatch(r"-?[0-9]+", row.label)]
    if len(numbers) < len(rows):
        labels = sorted({row.label for row in rows})
        mixed = f"{len(numbers):,} labels of {file.name} are numbers and the rest names: all names"
        return {label: i for i, label in enumerate(labels)}, (mixed,) if numbers else ()
    for row in rows:
        if not 0 <= int(row.label) < len(rows):
            raise row.error(
                f"label {row.label} is out of range: class ids run from 0 to the number of classes "
                f"less one, and there are {len(rows)} rows"
            )
    return {row.label: int(row.label) for row in rows}, ()


def _given_splits(rows: list[_Row], items: list[Item]) -> dict[str, tuple[Item, ...]]:
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for row, item in zip(rows, items, strict=True):
        if row.split not in SPLIT_NAMES:
            raise row.error(f"split must be train, val or test on every line, got {row.split!r}")
        splits[SPLIT_NAMES[row.split]].append(item)
    return {split: tuple(chosen) for split, chosen in splits.items() if chosen}


def _relative(row: _Row, folder: Path) -> str:
    path = row.path.replace("\\", "/")  # a table written on Windows
    if posixpath.isabs(path):
        if not Path(path).is_relative_to(folder.resolve()):
            raise row.error(f"path must be relative to the table's folder {folder}, got {path!r}")
        path = Path(path).relative_to(folder.resolve()).as_posix()
    return posixpath.normpath(path)
