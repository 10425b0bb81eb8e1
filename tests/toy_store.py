"""A small store of known content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.extraction.store_writer import create
from cache.images.skipped import Skipped
from cache.store import FeatureStore

CLASSNAMES = ("cat", "sea_lion", "über")
SIZES = {"train": 20, "test": 11}
DIM = 16
N_VIEWS = 4
SKIPPED = Skipped("val", "a.jpg", "the file is empty")
WIDTH = 20  # of the text tower, before its projection
IDENTITY: dict[str, Any] = {
    "dataset": {"name": "toy", "sizes": SIZES},
    "model": {"name": "tiny", "logit_scale": 50.0, "dim": DIM},
    "precision": "fp32",
    "text": {"templates": "a" * 64},
    "views": {"count": N_VIEWS, "crop_scale": [0.5, 1.0]},
    "support_only": None,
}


def raw_features(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of very different norms, along the last axis."""
    rng = np.random.default_rng([seed, *shape])
    vectors = rng.normal(size=shape) * rng.uniform(0.1, 30, size=(*shape[:-1], 1))
    return vectors.astype(np.float32)


def projection() -> NDArray[np.float32]:
    """The (W, D) matrix that ends the text tower."""
    return np.random.default_rng(9).normal(size=(WIDTH, DIM)).astype(np.float32)


def labels(split: str) -> NDArray[np.int64]:
    return np.arange(SIZES[split]) * 7 % len(CLASSNAMES)


def write_toy(path: Path, **options: Any) -> FeatureStore:
    """The toy store; the options are those of `write_toy_file`."""
    write_toy_file(path, **options)
    return FeatureStore.open(path)


def write_toy_file(
    path: Path,
    *,
    batch: int = 20,
    backwards: bool = False,
    rows: ArrayLike | None = None,
    view_rows: ArrayLike | None = None,
    text: Mapping[str, int] | None = None,
    identity: Mapping[str, Any] | None = None,
    tower: bool = False,
) -> None:
    """The file of the toy store, which may be one that is refused.

    Features and views of row i are those of `raw_features` in row i. With `tower`, it also has the
    text from before the projection. Without `identity`, it has the one that says what is in it.
    """
    if identity is None:
        sets = IDENTITY["text"] if text is None else dict.fromkeys(text, "a" * 64)
        only = None if rows is None else {"shots": 1}
        identity = {**IDENTITY, "text": sets, "support_only": only}
    with create(
        path, identity=identity, classnames=CLASSNAMES, versions={"numpy": "2"}, skipped=[SKIPPED]
    ) as writer:
        for split, size in SIZES.items():
            here = np.arange(size) if rows is None or split == "test" else np.asarray(rows)
            viewed = here if view_rows is None or split == "test" else np.asarray(view_rows)
            n_views = N_VIEWS if split == "train" else 0
            writer.split(
                split,
                labels=labels(split),
                paths=[f"{split}/{row} ü.jpg" for row in range(size)],
                dim=DIM,
                rows=here,
                n_views=n_views,
                view_rows=viewed if n_views else None,
            )
            features = raw_features(size, DIM)[here]
            views = raw_features(N_VIEWS, size, DIM)[:, viewed]
            steps: list[tuple[Any, int, Any]] = [
                (writer.write, start, features[start : start + batch])
                for start in range(0, len(here), batch)
            ]
            if n_views:
                steps += [
                    (writer.write_views, start, views[:, start : start + batch])
                    for start in range(0, len(viewed), batch)
                ]
            for write, start, block in reversed(steps) if backwards else steps:
                write(split, start, block)
        for name, n_prompts in ({"templates": 6} if text is None else text).items():
            embeddings = raw_features(n_prompts, DIM, seed=len(name))
            writer.text(
                name,
                embeddings,
                np.arange(n_prompts) % len(CLASSNAMES),
                [f"prompt {i}" for i in range(n_prompts)],
                embeddings @ np.linalg.pinv(projection()) if tower else None,
            )
        if tower:
            writer.text_projection(projection())
