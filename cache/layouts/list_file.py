"""Lists of images in text files, one `path label` per line, as domain adaptation publishes them.

A label is a whole number, and all before the last space is the path, spaces included. Names come
from a file with one per line, or are those of the images' folders.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cache.errors import UserError, excerpt
from cache.layouts.split_file import read_declared
from cache.listing import SPLIT_RULE, Item, Listing, split_items
from cache.manifest import SPLITS, Manifest

PLACE = "{split}"  # in a file's name, where train, val and test have a list each


def first_file(manifest: Manifest, data_root: Path) -> Path:
    """The list whose presence says that the dataset is there: that of test images, or the one."""
    layout = manifest.layout
    return data_root / layout.directory / layout.split_file.replace(PLACE, "test")


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the lists that a manifest names.

    Raises:
        UserError: With the line that is wrong.
    """
    layout = manifest.layout
    directory = data_root / layout.directory
    apart = PLACE in layout.split_file
    lists = {
        split: directory / layout.split_file.replace(PLACE, split)
        for split in (SPLITS if apart else ("",))
    }
    found = {
        split: list(_rows(file, layout.checksum))
        for split, file in lists.items()
        if file.is_file() or not apart
    }
    items = {split: tuple(item for _, item in rows) for split, rows in found.items()}
    places = [pair for rows in found.values() for pair in rows]
    names = _named(directory / layout.names, places) if layout.names else _folders(places)
    return Listing(
        directory / layout.images,
        tuple(manifest.rename.get(name, name) for name in names),
        items if apart else split_items(items[""]),
        layout.split_file if apart else f"{layout.split_file}, {SPLIT_RULE}",
        drawn=not apart,
    )


def _rows(file: Path, checksum: str) -> Iterator[tuple[str, Item]]:
    """Place, for messages, and content of each line that is not empty."""
    try:
        text = read_declared(file, checksum).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8; get it again") from error
    empty = True
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        path, _, label = line.strip().rpartition(" ")
        if not path or not (label.isascii() and label.isdigit()):
            raise UserError(f"{place}: expected a path and a whole number; got {excerpt(line)}")
        empty = False
        yield place, Item(path.strip(), int(label))
    if empty:
        raise UserError(f"{file} lists no image; get it again")


def _named(file: Path, rows: list[tuple[str, Item]]) -> list[str]:
    names = [line.strip() for line in read_declared(file, "").decode().splitlines() if line.strip()]
    for place, item in rows:
        if item.label >= len(names):
            raise UserError(
                f"{place}: label {item.label} has no name, for {file.name} has {len(names)}; "
                "labels start at 0"
            )
    return names


def _folders(rows: list[tuple[str, Item]]) -> list[str]:
    """The name of each label, that of its images' folder."""
    names: dict[int, str] = {}
    for place, item in rows:
        folder = PurePosixPath(item.path).parent.name
        if names.setdefault(item.label, folder) != folder or not folder:
            raise UserError(
                f"{place}: label {item.label} is of the folders {excerpt(names[item.label])} and "
                f"{excerpt(folder)}; name the classes in a file, as names in [layout]"
            )
    if sorted(names) != list(range(len(names))):
        gap = next(label for label in range(len(names)) if label not in names)
        raise UserError(
            f"no image has label {gap}, and labels go up to {max(names)}; name the classes in a "
            "file, as names in [layout]"
        )
    return [names[label] for label in range(len(names))]
