"""Small stores of easy classes, for whatever runs over several of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.extraction.store_writer import create
from cache.location import store_path

NAMES = ("ant", "bee", "cat", "dog")
DIM = 8


def write_store(
    root: Path,
    dataset: str,
    model: str = "toy",
    *,
    names: Sequence[str] = NAMES,
    seed: int = 0,
    splits: Sequence[str] = ("train", "val", "test"),
    text: Sequence[str] = ("templates",),
    n_views: int = 0,
    test_labels: Sequence[int] | None = None,
    without: int | None = None,
) -> Path:
    """A store of noise about a center for each class; 20 train images of each, 15 test images.

    One class may be without train images.
    """
    path = store_path(root, dataset, model)
    path.unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(len(names), DIM))
    identity: dict[str, Any] = {
        "dataset": {"name": dataset, "seed": seed},
        "model": {"name": model, "logit_scale": 50.0},
    }
    with create(path, identity=identity, classnames=names, versions={}) as writer:
        for split, n in (("train", 20), ("val", 5), ("test", 15)):
            if split not in splits:
                continue
            labels = np.arange(n * len(names)) % len(names)
            if split == "train":
                labels = labels[labels != without]
            if split == "test" and test_labels is not None:
                labels = np.array(test_labels)
            features = centers[labels] + rng.normal(size=(len(labels), DIM))
            here = n_views if split == "train" else 0
            paths = [f"{split}/{row}.jpg" for row in range(len(labels))]
            writer.split(split, labels=labels, paths=paths, dim=DIM, n_views=here)
            writer.write(split, 0, features.astype(np.float32))
            if here:
                noise = rng.normal(size=(here, *features.shape)) / 4
                writer.write_views(split, 0, (features + noise).astype(np.float32))
        for name in text:
            prompts = centers + 2 * rng.normal(size=centers.shape)
            writer.text(name, prompts.astype(np.float32), range(len(names)), list(names))
    return path
