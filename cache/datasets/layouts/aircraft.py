"""FGVC-Aircraft's own lists, which CoOp uses as they are: no JSON file.

`variants.txt` names the classes in order; `images_variant_{train,val,test}.txt` has one line
"<image id> <variant>" per image.
"""

from pathlib import Path

from cache.datasets.listing import Item, Listing
from cache.datasets.manifest_file import SPLITS, Manifest
from cache.errors import UserError


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of the dataset's three official lists, in their order."""
    directory = data_root / manifest.layout.directory
    root = directory / manifest.layout.images
    names = [line for _, line in _lines(directory / "variants.txt")]
    ids = {name: label for label, name in enumerate(names)}
    splits = {}
    for split in SPLITS:
        file = directory / f"images_variant_{split}.txt"
        items = []
        for number, line in _lines(file):
            image, _, variant = line.partition(" ")
            if variant not in ids:
                raise UserError(
                    f"{file}, line {number}: expected '<image id> <variant>' with a variant of "
                    f"variants.txt, got {line!r}"
                )
            items.append(Item(f"{image}.jpg", ids[variant]))
        splits[split] = tuple(items)
    return Listing(root, tuple(names), splits, "official images_variant lists")


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; it comes with the data") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8 ({error}); it comes with the data") from error
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]
