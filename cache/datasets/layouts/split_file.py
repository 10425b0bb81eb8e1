"""CoOp's layout: a folder of images and one JSON file that says which split each belongs to.

`split_zhou_*.json` (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022,
arXiv:2109.01134) holds {"train" | "val" | "test": [[path, class id, class name], ...]}. The order
of its rows is part of the benchmark: few-shot samples are drawn from it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.datasets.listing import Item, Listing
from cache.datasets.manifest_file import SPLITS, Manifest
from cache.errors import UserError, excerpt
from cache.files.json_text import parse_json


def read(manifest: Manifest, data_root: Path) -> Listing:
    """The listing of a published split file, in its order, once its checksum is right."""
    layout = manifest.layout
    directory = data_root / layout.directory
    file = directory / layout.split_file
    root = directory / layout.images
    if not root.is_dir():
        raise UserError(
            f"{file} is there but the images it lists are not: no folder {root}; see: fewshot "
            f"datasets {manifest.name}"
        )
    return read_split_file(file, root, layout.checksum)


def read_split_file(file: Path, root: Path, checksum: str = "") -> Listing:
    """The listing of a split file whose paths are relative to `root`.

    Raises:
        UserError: It has another checksum, or is no such file; says where.
    """
    content = read_declared(file, checksum)
    names: dict[int, str] = {}
    splits: dict[str, tuple[Item, ...]] = {}
    tree = _parse(file, content)
    for split in SPLITS:
        rows = []
        for path, label, name in _rows(file, split, tree[split]):
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{file}: class {label} is called both {excerpt(names[label])} and "
                    f"{excerpt(name)}; a split file has one name per class"
                )
            rows.append(Item(path, label))
        splits[split] = tuple(rows)
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"{file}: class ids must run from 0 to {len(names) - 1} without a gap, got "
            f"{min(names, default=0)} to {max(names, default=0)}"
        )
    classnames = tuple(names[label] for label in range(len(names)))
    return Listing(root, classnames, splits, file.name)


def read_declared(file: Path, checksum: str) -> bytes:
    """The bytes of the file that a manifest names, once their checksum is right."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    verify_checksum(file, content, checksum)
    return content


def verify_checksum(file: Path, content: bytes, checksum: str) -> None:
    """Raise UserError unless the content has this checksum.

    Args:
        file: For the message.
        content: All of its bytes.
        checksum: "sha256:<hex>", or "git-blob-sha1:<hex>" as `git hash-object` prints it; empty
            accepts everything.
    """
    kind, _, expected = checksum.partition(":")
    if kind == "git-blob-sha1":
        got = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    else:
        got = hashlib.sha256(content).hexdigest()
    if checksum and got != expected:
        raise UserError(
            f"{file} is not the declared file: expected {checksum}, got {kind}:{got}; download it "
            "again, or pass a --manifest of your own without the checksum"
        )


def _parse(file: Path, content: bytes) -> dict[str, Any]:
    tree = parse_json(content, str(file), remedy="download it again")
    missing = [s for s in SPLITS if not isinstance(tree, dict) or not isinstance(tree.get(s), list)]
    if missing:
        raise UserError(
            f"{file}: expected lists of rows under train, val and test, got none under "
            f"{', '.join(missing)}"
        )
    return dict(tree)


def _rows(file: Path, split: str, rows: list[Any]) -> Iterator[tuple[str, int, str]]:
    for number, row in enumerate(rows):
        match row:
            case [str(path), int(label), str(name)] if not isinstance(label, bool):
                yield path, label, name
            case _:
                raise UserError(
                    f"{file}: {split}[{number}]: expected [path, class id, class name], got "
                    f"{excerpt(row)}"
                )
