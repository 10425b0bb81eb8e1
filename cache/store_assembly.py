"""A store from features that are kept: nothing is encoded here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from cache.identity import Recipe
from cache.image_tower import ImageTower
from cache.new_images import Group, NewImages
from cache.source import Item, Source
from cache.store_writer import StoreWriter, create

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
    with create(
        store,
        identity=what,
        classnames=source.classnames,
        versions=versions,
        skipped=[*recipe.left_out, *found],
    ) as writer:
        for split in source.splits:
            mine = [group for group in groups if group[0] == split]
            width = 0 if tower is None else len(tower.scale)
            _write_split(writer, source, recipe, split, images, mine, width)
        dim = int(what["model"]["dim"])
        for name, prompts in recipe.prompts.items():
            vectors = np.array([text[prompt] for prompt in prompts.prompts])
            pooled = None if projection is None else vectors[:, dim:]
            labels = np.array(prompts.labels)
            writer.text(name, vectors[:, :dim], labels, list(prompts.prompts), pooled)
        if projection is not None and recipe.prompts:
            writer.text_projection(projection.numpy())
        if tower is not None:
            writer.image_tower(tower)


def _label_sets(source: Source, items: list[Item]) -> NDArray[np.uint8] | None:
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
) -> None:
    items = source.splits[split]
    kept = [row for row in range(len(items)) if (split, row) not in images.skipped]
    chosen = images.digests.rows[split]
    encoded = [row for row in chosen.tolist() if (split, row) not in images.skipped]
    views = recipe.views if split == "train" else 0
    dim = int(writer.identity["model"]["dim"])
    writer.split(
        split,
        labels=np.array([items[row].label for row in kept], dtype=np.int64),
        label_sets=_label_sets(source, [items[row] for row in kept]),
        paths=[items[row].path for row in kept],
        dim=dim,
        pooled_dim=pooled_dim,
        rows=None if encoded == kept else np.searchsorted(kept, encoded),
        n_views=views,
    )
    start = 0
    for group in groups:
        made = images.features(group)
        features, pooled = made[:, :, :dim], made[:, :, dim:]
        if len(made):
            writer.write(split, start, features[:, 0])
            if pooled_dim:
                writer.write_pooled(split, start, pooled[:, 0])
            if views:
                writer.write_views(split, start, features[:, 1:].transpose(1, 0, 2))
                if pooled_dim:
                    writer.write_pooled_views(split, start, pooled[:, 1:].transpose(1, 0, 2))
            start += len(made)
