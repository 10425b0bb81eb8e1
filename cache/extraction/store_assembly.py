"""A store from features that are kept: nothing is encoded here.

A store of many features is made in parts: those that are there already, of the same crops by the
same encoder, are not written again, and not read.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache.arrays.image_tower import ImageTower
from cache.arrays.parts import (
    PART_BYTES,
    StorePart,
    create_part,
    open_part,
    parts_folder,
    remove_others,
)
from cache.datasets.items import Paths, chosen_items, labels_of
from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.extraction.new_images import Group, NewImages
from cache.extraction.store_writer import StoreWriter, create
from cache.identity import Recipe

ONE_FILE = 2**30  # bytes of vectors
Text = Mapping[str, NDArray[np.float32]]  # prompt -> its embedding (D,) and pooled (W,) after it


def assemble(
    store: Path,
    what: Mapping[str, Any],
    versions: Mapping[str, str],
    source: Source,
    recipe: Recipe,
    images: NewImages,
    groups: list[Group],
    text: Text,
    projection: Tensor | None,
    tower: ImageTower | None,
    encoding: str,
    in_parts: bool | None = None,
) -> None:
    """Write the store; rows that were skipped are left out of every split.

    Args:
        store: Where it goes.
        what: Its identity.
        versions: What computed it.
        source: The images.
        recipe: The contents.
        images: Their features.
        groups: All of them, in store order.
        text: The features of all prompts.
        projection: (W, D), the matrix that ends the text tower, if one does.
        tower: The last layers of the image tower, where the features come with pooled images.
        encoding: 64 hex digits that stand for all that changes a byte of a feature, besides the
            crop.
        in_parts: Write the features into parts, or into the store's own file; without it, into
            parts where they take more than `ONE_FILE` bytes.

    Raises:
        UserError: A skipped image is one of a few-shot set, or a feature cannot be stored.
    """
    splits = list(source.splits)
    order = sorted(images.skipped, key=lambda at: (splits.index(at[0]), at[1]))
    found = [images.skipped[at] for at in order]
    if recipe.train_rows is not None and any(image.split == "train" for image in found):
        raise UserError(
            "leaving out train images that do not decode changes the few-shot sample; remove them "
            f"from the dataset and run this again: {'; '.join(map(str, found))}"
        )
    width, dim = 0 if tower is None else len(tower.scale), int(what["model"]["dim"])
    if in_parts is None:
        rows = images.digests.rows
        size = sum(len(rows[s]) * _row_bytes(recipe, s, dim, width) for s in source.splits)
        in_parts = size > ONE_FILE
    folder = parts_folder(store)
    parts: dict[str, list[StorePart]] = {}
    if in_parts:
        for split in source.splits:
            mine = [group for group in groups if group[0] == split]
            parts[split] = _write_parts(folder, recipe, split, images, mine, dim, width, encoding)
    with create(
        store,
        identity=what,
        classnames=source.classnames,
        versions=versions,
        skipped=[*recipe.left_out, *found],
    ) as writer:
        for split in source.splits:
            mine = [group for group in groups if group[0] == split]
            _write_split(writer, source, recipe, split, images, mine, width, parts.get(split))
        for name, prompts in recipe.prompts.items():
            vectors = np.array([text[prompt] for prompt in prompts.prompts])
            pooled = None if projection is None else vectors[:, dim:]
            labels = np.array(prompts.labels)
            writer.text(name, vectors[:, :dim], labels, list(prompts.prompts), pooled)
        if projection is not None and recipe.prompts:
            writer.text_projection(projection.numpy())
        if tower is not None:
            writer.image_tower(tower)
    remove_others(folder, {part.file for some in parts.values() for part in some})


def _label_sets(source: Source, items: Sequence[Item]) -> NDArray[np.uint8] | None:
    """(N, C) 1 for each class of each item; None where each has one."""
    if not source.multi_label:
        return None
    sets = np.zeros((len(items), len(source.classnames)), np.uint8)
    for row, item in enumerate(items):
        sets[row, list(item.labels)] = 1
    return sets


def _write_split(
    writer: StoreWriter,
    source: Source,
    recipe: Recipe,
    split: str,
    images: NewImages,
    groups: list[Group],
    pooled_dim: int,
    parts: list[StorePart] | None,
) -> None:
    items = source.splits[split]
    lost = sorted(row for of, row in images.skipped if of == split)
    kept = np.delete(np.arange(len(items)), lost)
    there = chosen_items(items, kept.tolist()) if lost else items
    chosen = images.digests.rows[split]
    encoded = chosen[np.isin(chosen, lost, invert=True)]
    dim = int(writer.identity["model"]["dim"])
    writer.split(
        split,
        labels=labels_of(there),
        label_sets=_label_sets(source, there),
        paths=Paths(there),
        dim=dim,
        pooled_dim=pooled_dim,
        rows=None if np.array_equal(encoded, kept) else np.searchsorted(kept, encoded),
        n_views=recipe.views if split == "train" else 0,
        parts=parts,
    )
    if parts is not None:
        return
    write = {
        "features": writer.write,
        "pooled": writer.write_pooled,
        "views": writer.write_views,
        "pooled_views": writer.write_pooled_views,
    }
    start = 0
    for group in groups:
        made = images.features(group)
        for name, block in _matrices(made, dim):
            write[name](split, start, block)
        start += len(made)


def _write_parts(
    folder: Path,
    recipe: Recipe,
    split: str,
    images: NewImages,
    groups: list[Group],
    dim: int,
    pooled_dim: int,
    encoding: str,
) -> list[StorePart]:
    """The parts of a split, of which those that are not there yet are written."""
    row_bytes = _row_bytes(recipe, split, dim, pooled_dim)
    at_once = max(1, PART_BYTES // (row_bytes * len(groups[0][1])))
    found = []
    for number, first in enumerate(range(0, len(groups), at_once)):
        some = groups[first : first + at_once]
        crops = [keys for group in some for keys in images.keys(*group).values()]
        if not crops:
            continue
        made_of = hashlib.sha256(encoding.encode() + b"".join(chain(*crops))).hexdigest()
        path = folder / f"{split}-{number:05d}-{made_of[:12]}.h5"
        try:
            part = open_part(str(path), made_of)
        except UserError:  # there is none, or none that was finished
            _write_part(path, split, made_of, images, some, dim)
            part = open_part(str(path), made_of)
        found.append(StorePart.of(part, made_of))
    return found


def _write_part(
    path: Path, split: str, made_of: str, images: NewImages, groups: list[Group], dim: int
) -> None:
    places = [place for group in groups for place in images.keys(*group)]
    blocks = (block for block in map(images.features, groups) if len(block))
    first = next(blocks)
    shapes = {
        name: (*block.shape[:-2], len(places), block.shape[-1])
        for name, block in _matrices(first, dim)
    }

    def name_of(place: int) -> str:
        return images.digests.path(split, places[place])

    with create_part(path, split, made_of, shapes, name_of) as part:
        start = 0
        for made in chain([first], blocks):
            for name, block in _matrices(made, dim):
                part.write(name, start, block)
            start += len(made)


def _matrices(made: NDArray[np.float32], dim: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(n, D) features, pooled images, views and pooled views of (n, 1 + V, D + w) vectors."""
    named = (("features", "views", made[..., :dim]), ("pooled", "pooled_views", made[..., dim:]))
    for centers, views, vectors in named:
        if vectors.size:
            yield centers, vectors[:, 0]
        if vectors[:, 1:].size:
            yield views, vectors[:, 1:].transpose(1, 0, 2)


def _row_bytes(recipe: Recipe, split: str, dim: int, pooled_dim: int) -> int:
    """The bytes of all vectors of one image."""
    return 2 * (dim + pooled_dim) * (1 + (recipe.views if split == "train" else 0))
