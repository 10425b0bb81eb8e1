"""Lists of images and their classes in files of their own, as many benchmarks publish them.

A text file has one `path label` per line: the label is a whole number, and all before the last
space is the path, spaces included. A JSON file has {path: class id}; ids become labels in the order
of those in the train list, so that a class that another list lacks shifts no label. Names come from
the manifest, from a file with one per line, or are those of the images' folders.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cache.datasets.layouts.split_file import read_declared
from cache.datasets.listing import SPLIT_RULE, Item, Listing, split_items
from cache.datasets.manifest_file import SPLITS, Layout, Manifest
from cache.errors import UserError, excerpt
from cache.files.json_text import parse_json

PLACE = "{split}"  # in a file's name, where train, val and test have a list each


class _Row(NamedTuple):
    """An image of a list, and the place there, for messages."""

    place: str
    path: str
    label: int


Rows = dict[str, list[_Row]]  # by split; under "" where one list is to be split


def first_file(manifest: Manifest, data_root: Path) -> Path:
    """The list whose presence says that the dataset is there: that of test images, or the one."""
    files = _files(manifest.layout, data_root)
    return files.get("test") or next(iter(files.values()))


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the lists that a manifest names.

    Raises:
        UserError: With the line that is wrong.
    """
    layout = manifest.layout
    directory = data_root / layout.directory
    files = _files(layout, data_root)
    drawn = "" in files
    found = {
        split: list(_rows(file, layout.checksums.get(split, layout.checksum)))
        for split, file in files.items()
        if file.is_file() or drawn
    }
    if any(file.suffix == ".json" for file in files.values()):
        found = _ranked(found)
    if layout.labels == "folders":
        names, found = _by_folder(found)
    elif layout.names or manifest.classnames:
        names = list(manifest.classnames) or _lines(directory / layout.names)
        _require_names(names, layout.names or "the manifest", found)
    else:
        names = _folders(found)
    items = {
        split: tuple(Item(row.path, row.label) for row in rows) for split, rows in found.items()
    }
    listed = ", ".join(file.name for split, file in files.items() if split in found)
    return Listing(
        directory / layout.images,
        tuple(map(manifest.called, names)),
        split_items(items[""]) if drawn else items,
        f"{listed}, {SPLIT_RULE}" if drawn else layout.split_file or listed,
        drawn=drawn,
    )


def _files(layout: Layout, data_root: Path) -> dict[str, Path]:
    """The list of each split, or the one that is to be split under ""."""
    directory = data_root / layout.directory
    if layout.lists:
        return {split: directory / name for split, name in layout.lists.items()}
    splits = SPLITS if PLACE in layout.split_file else ("",)
    return {split: directory / layout.split_file.replace(PLACE, split) for split in splits}


def _rows(file: Path, checksum: str) -> Iterator[_Row]:
    """Each image of a list."""
    try:
        content = read_declared(file, checksum)
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8; get it again") from error
    listed = _pairs(file, content) if file.suffix == ".json" else _split_lines(file, text)
    empty = True
    for place, path, label in listed:
        if not path or not (label.isascii() and label.isdigit()):
            got = excerpt(f"{path} {label}".strip())
            raise UserError(f"{place}: expected a path and a whole number; got {got}")
        empty = False
        yield _Row(place, path, int(label))
    if empty:
        raise UserError(f"{file} lists no image; get it again")


def _split_lines(file: Path, text: str) -> Iterator[tuple[str, str, str]]:
    """Place, path and label of each line that is not empty."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            path, _, label = line.strip().rpartition(" ")
            yield f"{file}, line {number}", path.strip(), label


def _pairs(file: Path, content: bytes) -> Iterator[tuple[str, str, str]]:
    """Place, path and class id of each pair of a JSON object."""
    tree = parse_json(content, str(file), remedy="get it again")
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected an object of path and class id; get it again")
    for path, label in tree.items():
        yield f"{file}, {excerpt(path)}", path, str(label)


def _ranked(found: Rows) -> Rows:
    """The lists with ids 0 to C - 1 in place of the train list's."""
    known = sorted({row.label for row in found.get("train", [])})
    rank = {label: k for k, label in enumerate(known)}
    for rows in found.values():
        for row in rows:
            if row.label not in rank:
                raise UserError(f"{row.place}: no train image has class id {row.label}")
    return {
        split: [row._replace(label=rank[row.label]) for row in rows]
        for split, rows in found.items()
    }


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"no class names at {file}; put them there, one per line, by label")
    text = read_declared(file, "").decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _require_names(names: list[str], where: str, found: Rows) -> None:
    for rows in found.values():
        for row in rows:
            if row.label >= len(names):
                raise UserError(
                    f"{row.place}: label {row.label} has no name, for {where} has {len(names)}; "
                    "labels start at 0"
                )


def _by_folder(found: Rows) -> tuple[list[str], Rows]:
    """Folders' names in their order, and the lists with these as labels."""
    names = sorted({_folder(row) for rows in found.values() for row in rows})
    ids: Mapping[str, int] = {name: k for k, name in enumerate(names)}
    return names, {
        split: [row._replace(label=ids[_folder(row)]) for row in rows]
        for split, rows in found.items()
    }


def _folder(row: _Row) -> str:
    return row.path.rpartition("/")[0].rpartition("/")[2]


def _folders(found: Rows) -> list[str]:
    """The name of each label, that of its images' folder."""
    names: dict[int, str] = {}
    for row in (row for rows in found.values() for row in rows):
        folder = _folder(row)
        if names.setdefault(row.label, folder) != folder or not folder:
            raise UserError(
                f"{row.place}: label {row.label} is of the folders {excerpt(names[row.label])} and "
                f"{excerpt(folder)}; name the classes in a file, as names in [layout]"
            )
    if sorted(names) != list(range(len(names))):
        gap = next(label for label in range(len(names)) if label not in names)
        raise UserError(
            f"no image has label {gap}, and labels go up to {max(names)}; name the classes in a "
            "file, as names in [layout]"
        )
    return [names[label] for label in range(len(names))]
