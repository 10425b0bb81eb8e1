"""Label sets, and a store of images that may have several labels."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from cache.extraction.store_writer import create
from cache.store import FeatureStore
from fewshot.text import Text

NAMES = ("ant", "bee", "cat", "dog")
DIM = 8


def sets_of(n: int, seed: int) -> NDArray[np.bool_]:
    """(n, 4) labels, one at least on each image, the first class the rarest."""
    sets = np.random.default_rng(seed).random((n, 4)) < (0.2, 0.35, 0.35, 0.5)
    sets[~sets.any(axis=1), 3] = True
    return sets


def write_label_store(
    path: Path, *, sets: NDArray[np.bool_] | None = None, text: bool = True, views: int = 0
) -> FeatureStore:
    """A store of noise about the sum of the centers of each image's classes."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, DIM))
    what = {
        "dataset": {"name": "toy", "multi_label": True},
        "model": {"name": "noise", "logit_scale": 40.0, "dim": DIM},
    }
    with create(path, identity=what, classnames=NAMES, versions={}) as writer:
        for seed, (split, n) in enumerate((("train", 120), ("test", 80))):
            mine = sets_of(n, seed)
            own = mine.argmax(axis=1)
            if split == "test" and sets is not None:
                mine = sets
                own = mine.argmax(axis=1)
            paths = [f"{split}/{row}.jpg" for row in range(n)]
            here = views if split == "train" else 0
            writer.split(split, labels=own, label_sets=mine, paths=paths, dim=DIM, n_views=here)
            writer.write(split, 0, mine @ centers + rng.normal(size=(n, DIM)))
            if here:
                writer.write_views(split, 0, mine @ centers + rng.normal(size=(here, n, DIM)))
        if text:
            writer.text("templates", centers + rng.normal(size=(4, DIM)), range(4), NAMES)
    return FeatureStore.open(path)


def text() -> Text:
    return Text(normalize(torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)), dim=1))
