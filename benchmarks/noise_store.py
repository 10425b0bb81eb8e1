"""Stores of any size, all noise about a mean per class: the material of the other benchmarks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache.extraction.store_writer import create
from cache.store import FeatureStore

BLOCK = 65_536


def write(
    path: Path, *, classes: int, dim: int, sizes: Mapping[str, int], views: int = 0
) -> FeatureStore:
    """The store, made unless it is there.

    Args:
        path: Where it goes.
        classes: C, of as equal size as can be, in order.
        dim: D.
        sizes: Images of each split.
        views: V, augmented views of each train image.
    """
    if path.exists():
        return FeatureStore.open(path)
    rng = np.random.default_rng(0)
    means = rng.normal(size=(classes, dim)).astype(np.float32)
    identity = {"dataset": {"name": "noise"}, "model": {"name": "noise", "logit_scale": 100.0}}
    names = [f"class {k}" for k in range(classes)]
    with create(path, identity=identity, classnames=names, versions={}) as writer:
        for split, size in sizes.items():
            labels = np.sort(np.arange(size) % classes)
            paths = [f"{k}/{i}.JPEG" for i, k in enumerate(labels)]
            here = views if split == "train" else 0
            writer.split(split, labels=labels, paths=paths, dim=dim, n_views=here)
            for start in range(0, size, BLOCK):
                mine = labels[start : start + BLOCK]
                noise = rng.standard_normal((len(mine), dim), dtype=np.float32)
                features = 0.4 * means[mine] + noise
                writer.write(split, start, features)
                if here:
                    more = rng.standard_normal((here, *features.shape), dtype=np.float32)
                    writer.write_views(split, start, features + 0.5 * more)
        text = (0.3 * means + rng.normal(size=means.shape)).astype(np.float32)
        projection = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
        writer.text("templates", text, np.arange(classes), names, pooled=text @ projection.T)
        writer.text_projection(projection)
    return FeatureStore.open(path)
