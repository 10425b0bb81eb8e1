"""A user's folder of class folders: a class is a folder and its name is the folder's.

Either `train/`, `val/` and `test/` hold the class folders (one or two of the three will do, by any
name that `conventions` knows), or the folder holds them itself and is split 50/20/30. A folder
called `unlabeled/` beside them is no class.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cache.datasets.image_search import describe_ignored, find_images, folders, lost_links
from cache.datasets.layouts.conventions import UNLABELED, of_a_system, split_of
from cache.datasets.listing import SPLIT_RULE, Item, Listing, split_items
from cache.datasets.manifest_file import SPLITS, Manifest
from cache.errors import UserError, printable


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the folder a user's own manifest names."""
    layout = manifest.layout
    return read_folder(data_root / layout.directory / layout.images, manifest.rename, manifest.drop)


def read_folder(
    root: Path, rename: Mapping[str, str] | None = None, drop: tuple[str, ...] = ()
) -> Listing:
    """The listing of class folders, by class name and then by path.

    Args:
        root: The folder.
        rename: Folder name -> class name, where they differ.
        drop: Class folders to leave out.

    Raises:
        UserError: No folder, no class folders, or one file in two classes or splits.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of class folders")
    beside = unlabeled_folder(root)
    drop = (*drop, *([beside.name] if beside else ()))
    split_folders = _split_folders(root)
    parents = {split: f"{folder}/" for split, folder in split_folders.items()} or {"all": ""}
    classes = {
        split: [name for name in folders(root / parent) if name not in drop]
        for split, parent in parents.items()
    }
    folder_names = sorted(set().union(*classes.values()))
    if not folder_names:
        raise UserError(f"{root} has no class folders; each class is a folder of its images")
    if not split_folders:
        _require_class_folders(root, folder_names)
    ignored: Counter[str] = Counter()
    lost = [f"{parent}{name}" for parent in parents.values() for name in lost_links(root / parent)]
    splits: dict[str, Sequence[Item]] = {}
    owners: dict[str, str] = {}  # file -> the path under which it was found
    for split, parent in parents.items():
        found = (
            item
            for label, name in enumerate(folder_names)
            if name in classes[split]
            for item in _items(root, f"{parent}{name}", label, owners, ignored)
        )
        splits[split] = tuple(found)
        ignored["outside any class folder"] += _files(root / parent)
    if not split_folders:
        splits = split_items(splits["all"])
    left_out = describe_ignored(ignored)
    notes = [f"files left out: {left_out}"] if left_out else []
    if lost:
        notes.append(f"links left out, as they lead nowhere or back: {', '.join(lost)}")
    if beside:
        notes.append(f"{beside.name}/ is left out: its images have no label")
    names = tuple((rename or {}).get(name, name) for name in folder_names)
    origin = f"folders {', '.join(split_folders.values())}" if split_folders else "folders"
    return Listing(
        root,
        names,
        splits,
        origin if split_folders else f"{origin}, {SPLIT_RULE}",
        tuple(notes),
        drawn=not split_folders,
    )


def _items(
    root: Path, folder: str, label: int, owners: dict[str, str], ignored: Counter[str]
) -> Iterator[Item]:
    """The images of a class folder; one that is linked twice within it comes once.

    Args:
        root: The folder of all.
        folder: That of the class, relative to it.
        label: The class id.
        owners: File -> the path under which it was found first; those here are added.
        ignored: Counts of other files; those here are added.

    Raises:
        UserError: A file was found in another folder before.
    """
    images = find_images(root / folder)
    ignored.update(images.ignored)
    for path, file in images.files.items():
        item = Item(f"{folder}/{path}", label)
        first = owners.setdefault(_hard_linked(file) or file, item.path)
        if first == item.path:
            yield item
        elif not first.startswith(f"{folder}/"):
            raise _two_owners(root, first, item.path)


def unlabeled_folder(root: Path) -> Path | None:
    """The folder of images without labels beside the class folders, if there is one.

    Raises:
        UserError: There are two.
    """
    found = [name for name in folders(root) if name.lower() in UNLABELED]
    if len(found) > 1:
        raise UserError(f"{root} has both {found[0]}/ and {found[1]}/; keep one of them")
    return root / found[0] if found else None


def _split_folders(root: Path) -> dict[str, str]:
    """Split -> folder, where the folder is divided into splits; empty where it is not.

    A folder called "train" divides it if it holds folders itself: one that holds images is a class
    of trains.
    """
    found = {name: split for name in folders(root) if (split := _split_folder(root, name))}
    by_split: dict[str, str] = {}
    for name, split in found.items():
        if split in by_split:
            raise UserError(
                f"{root} has both {by_split[split]}/ and {name}/; keep one {split} split"
            )
        by_split[split] = name
    named = [name for name in folders(root) if split_of(name)]
    if len(named) > 1 and not found and len(named) == len(folders(root)):
        raise UserError(
            f"{root} has the splits {', '.join(named)}, without class folders inside; put each "
            "class's images into a folder, or name classes in a table (metadata.csv)"
        )
    others = [n for n in folders(root) if n not in found and n.lower() not in UNLABELED]
    mixed = [name for name in others if by_split and find_images(root / name).paths]
    if mixed:
        raise UserError(
            f"{root} has split folders ({', '.join(found)}) beside other folders of images "
            f"({', '.join(mixed[:5])}); give class folders either inside splits or without them"
        )
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _split_folder(root: Path, name: str) -> str | None:
    split = split_of(name)
    return split if split and folders(root / name) else None


def _require_class_folders(root: Path, names: list[str]) -> None:
    """Raise UserError where the only folder is not a class, but holds the class folders."""
    if len(names) != 1 or _files(root):
        return
    below = folders(root / names[0])
    if len(below) > 1 and not _files(root / names[0]):
        named = ", ".join(map(printable, below[:5]))
        more = f" and {len(below) - 5:,} more" if len(below) > 5 else ""
        raise UserError(
            f"{root} holds one folder, {names[0]}/, and that holds {named}{more}; "
            f"give {root / names[0]} if these are the classes or splits"
        )


def _hard_linked(file: str) -> str:
    """The device and inode of a file that has several names; empty for others."""
    try:
        found = Path(file).stat()
    except OSError:  # the check of all files names it
        return ""
    return f"{found.st_dev}:{found.st_ino}" if found.st_nlink > 1 else ""


def _two_owners(root: Path, first: str, second: str) -> UserError:
    return UserError(
        f"{root / first} and {root / second} are one file, reached by a link; an image has one "
        "class and one split: remove one of the two"
    )


def _files(directory: Path) -> int:
    return sum(entry.is_file() and not of_a_system(entry.name) for entry in directory.iterdir())
