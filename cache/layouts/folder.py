"""A user's folder of class folders: a class is a folder and its name is the folder's.

Either `train/`, `val/` and `test/` hold the class folders (`valid/` and `validation/` will do, and
one or two of the three), or the folder holds them itself and is split 50/20/30. A folder called
`unlabeled/` beside them is no class.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cache.errors import UserError
from cache.listing import SPLIT_RULE, Item, Listing, find_images, folders, lost_links, split_items
from cache.manifest import SPLITS, Manifest

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNLABELED = ("unlabeled", "unlabelled")


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
        UserError: No folder, no class folders, or splits with different classes.
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
    _require_same_classes(root, classes)
    folder_names = next(iter(classes.values()))
    if not folder_names:
        raise UserError(f"{root} has no class folders; each class is a folder of its images")
    ignored: Counter[str] = Counter()
    lost = [f"{parent}{name}" for parent in parents.values() for name in lost_links(root / parent)]
    splits: dict[str, tuple[Item, ...]] = {}
    for split, parent in parents.items():
        items = []
        for label, name in enumerate(folder_names):
            images = find_images(root / parent / name)
            ignored += images.ignored
            items += [Item(f"{parent}{name}/{path}", label) for path in images.paths]
        splits[split] = tuple(items)
        ignored["outside any class folder"] += _files(root / parent)
    if not split_folders:
        splits = split_items(splits["all"])
    left_out = ", ".join(f"{n:,} {what}" for what, n in sorted(ignored.items()) if n)
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
    found = [name for name in folders(root) if name.lower() in SPLIT_NAMES and folders(root / name)]
    by_split: dict[str, str] = {}
    for name in found:
        split = SPLIT_NAMES[name.lower()]
        if split in by_split:
            raise UserError(
                f"{root} has both {by_split[split]}/ and {name}/; keep one {split} split"
            )
        by_split[split] = name
    others = [n for n in folders(root) if n not in found and n.lower() not in UNLABELED]
    mixed = [name for name in others if by_split and find_images(root / name).paths]
    if mixed:
        raise UserError(
            f"{root} has split folders ({', '.join(found)}) beside other folders of images "
            f"({', '.join(mixed[:5])}); give class folders either inside splits or without them"
        )
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _require_same_classes(root: Path, classes: Mapping[str, list[str]]) -> None:
    every = set().union(*classes.values())
    for split, names in classes.items():
        lacking = sorted(every - set(names))
        if lacking:
            raise UserError(
                f"{root}: every split needs the same class folders; {split} lacks "
                f"{', '.join(lacking[:10])}{' and more' if len(lacking) > 10 else ''}"
            )


def _files(directory: Path) -> int:
    return sum(entry.is_file() and not entry.name.startswith(".") for entry in directory.iterdir())
