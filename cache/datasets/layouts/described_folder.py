"""A folder of images that a table inside describes, as Hugging Face's "imagefolder" has it.

`metadata.csv` or `metadata.jsonl` lies beside the images, once or in each split folder.
"""

from collections.abc import Mapping
from pathlib import Path

from cache.datasets.image_search import folders
from cache.datasets.layouts.conventions import METADATA, split_of
from cache.datasets.layouts.table import read_table
from cache.datasets.listing import Item, Listing
from cache.datasets.manifest_file import SPLITS


def read_described(root: Path, *, multi_label: bool = False) -> Listing | None:
    """The listing of the table or tables inside; None where the folder has none.

    A table beside several class folders is not taken: there the folders name the classes.

    Args:
        root: The folder.
        multi_label: As in `read_table`.

    Raises:
        UserError: A table cannot be read, with the line that is wrong.
    """
    whole = _metadata(root)
    if whole and len(folders(root)) < 2:
        return read_table(whole, multi_label=multi_label)
    parts = {
        split: read_table(table, multi_label=multi_label)
        for name in folders(root)
        if (split := split_of(name)) and (table := _metadata(root / name))
    }
    return _merged(root, parts) if parts else None


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _merged(root: Path, parts: Mapping[str, Listing]) -> Listing:
    classnames = sorted({name for part in parts.values() for name in part.classnames})
    ids = {name: i for i, name in enumerate(classnames)}
    splits = {
        split: tuple(
            Item(
                f"{part.root.name}/{item.path}",
                ids[part.classnames[item.label]],
                tuple(sorted(ids[part.classnames[label]] for label in item.more)),
            )
            for item in sorted(
                (item for items in part.splits.values() for item in items),
                key=lambda item: item.path,
            )
        )
        for split, part in parts.items()
    }
    in_order = {split: splits[split] for split in SPLITS if split in splits}
    origin = f"metadata in {', '.join(parts[split].root.name for split in in_order)}"
    notes = tuple(dict.fromkeys(note for part in parts.values() for note in part.notes))
    several = any(part.multi_label for part in parts.values())
    return Listing(root, tuple(classnames), in_order, origin, notes, multi_label=several)
