"""A store looked over: `verify` reads every byte again, `inspect` says what is in it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.arrays.contents import UNIT_TOLERANCE, Contents
from cache.arrays.image_tower import ImageTower
from cache.arrays.store_format import SPLITS, is_image_matrix
from cache.errors import UserError, count
from cache.split import Split
from cache.store import FeatureStore

TEXT_TOLERANCE = 1e-5  # of unit norm, in float32
PROJECTED_TOLERANCE = 2e-2  # of the norm: the projection may have run in bfloat16


def verify(path: Path) -> list[str]:
    """The problems of a store, one line each; none if it is sound.

    Where bytes have changed since they were written, that is all it says: what they now mean
    does not matter.
    """
    try:
        store = FeatureStore.open(path)
        files = store.contents.files
        changed = [
            f"{_file(contents, store)}/{name}: its bytes are not the ones that were written"
            for contents in files
            for name in contents.places
            if not contents.is_unchanged(name)
        ]
        return changed or [
            _file(contents, store) + problem
            for contents in files
            for problem in (
                *_vector_problems(contents),
                *_tower_problems(contents),
                *_image_tower_problems(contents, store.image_tower),
            )
        ]
    except UserError as error:
        return [str(error)]


def inspect(path: Path) -> str:
    """A store described for a reader, over several lines."""
    store = FeatureStore.open(path)
    origin = store.identity["dataset"].get("origin")
    lines = {
        "store": _size_words(store),
        "dataset": f"{store.dataset}, {count(store.n_classes, 'class', 'classes')}"
        + (f", {origin}" if origin else ""),
        "model": _words(store.identity["model"]),
        "features": f"{store.dim} wide" + (", imported" if store.imported else ""),
        "preprocessing": _words(store.identity.get("preprocessing")),
        "precision": _words(store.identity.get("precision")),
        "fingerprint": store.fingerprint,
        "versions": _words(store.versions),
    }
    for name in store.splits:
        lines[name] = _split_words(store.split(name), store.n_classes)
    for name in store.text_sets:
        labels = store.contents.array(f"text/{name}/labels")
        counts = np.bincount(labels, minlength=store.n_classes)
        lines[f"text {name}"] = f"{count(counts.sum(), 'prompt')}, {_range(counts)} per class"
        if f"text/{name}/pooled" in store.contents:
            pooled = store.contents.places[f"text/{name}/pooled"].shape[1]
            lines[f"text {name}"] += f", {pooled} wide before the projection"
    if store.identity.get("support_only"):
        lines["support only"] = _words(store.identity["support_only"])
    if store.skipped:
        more = ", ..." if len(store.skipped) > 10 else ""
        first = ", ".join(map(str, store.skipped[:10]))
        lines["skipped"] = f"{count(len(store.skipped), 'image')}: {first}{more}"
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def _vector_problems(contents: Contents) -> Iterator[str]:
    """Features that are no unit vectors, and norms that are none."""
    tolerances = {"embeddings": TEXT_TOLERANCE}
    tolerances |= dict.fromkeys(("features", "views", "pooled", "pooled_views"), UNIT_TOLERANCE)
    for name in contents.places:
        kind = name.rpartition("/")[2]
        if kind in tolerances and (is_image_matrix(name) or kind == "embeddings"):
            # Written so that NaN counts as bad.
            bad = sum(
                int(np.sum(~(np.abs(_norms(block) - 1) <= tolerances[kind])))
                for block in contents.blocks(name)
            )
            if bad:
                yield f"/{name}: {bad} vectors are not of unit norm"
        elif kind.endswith("norms"):
            norms = contents.array(name)
            bad = int(np.sum(~((norms > 0) & np.isfinite(norms))))
            if bad:
                yield f"/{name}: {bad} norms are not finite and above 0"


def _tower_problems(contents: Contents) -> Iterator[str]:
    """Text from before the projection that the projection does not take to the embeddings."""
    for name in contents.places:
        group, _, kind = name.rpartition("/")
        if kind != "pooled" or is_image_matrix(name):
            continue
        norms = contents.array(f"{group}/norms")
        embeddings = norms[:, None] * contents.array(f"{group}/embeddings")
        with np.errstate(invalid="ignore", over="ignore"):
            off = _norms(contents.array(name) @ contents.array("text_projection") - embeddings)
        bad = int(np.sum(~(off <= PROJECTED_TOLERANCE * norms)))  # NaN counts as bad
        if bad:
            yield f"/{name}: {bad} vectors are not projected to the embeddings"


def _image_tower_problems(contents: Contents, tower: ImageTower | None) -> Iterator[str]:
    """Pooled images of which the tower's last layers do not make the features."""
    if tower is None:
        return
    for split in SPLITS:
        for pooled, features in (("pooled", "features"), ("pooled_views", "views")):
            if f"{split}/{pooled}" not in contents:
                continue
            lengths = contents.array(f"{split}/{pooled.removesuffix('s')}_norms").ravel()
            bad = start = 0
            blocks = (contents.blocks(f"{split}/{name}") for name in (pooled, features))
            for before, after in zip(*blocks, strict=True):
                norms = lengths[start : start + len(before), None]
                start += len(before)
                with np.errstate(all="ignore"):
                    made = tower.features(before.astype(np.float32) * norms)
                    off = _norms(made / _norms(made)[:, None] - after)
                bad += int(np.sum(~(off <= PROJECTED_TOLERANCE)))  # NaN counts as bad
            if bad:
                yield f"/{split}/{pooled}: {bad} vectors do not lead to the {features}"


def _file(contents: Contents, store: FeatureStore) -> str:
    """The name of a part; empty for the store's own file."""
    own = contents.address == store.contents.address
    return "" if own else contents.address.rpartition("/")[2]


def _norms(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(np.linalg.norm(vectors.astype(np.float32), axis=1))


def _split_words(split: Split, n_classes: int) -> str:
    words = f"{count(len(split), 'image')}, "
    counts = np.zeros(n_classes, np.int64) if split.unlabeled else split.images_per_class(n_classes)
    words += "unlabeled" if split.unlabeled else f"{_range(counts)} per class"
    if split.multi_label:
        words += f", labels per image: {counts.sum() / len(split):.1f}"
    if len(split.encoded) < len(split):
        words += f", {len(split.encoded)} of them encoded"
    if split.n_views:
        words += f", {count(split.n_views, 'view')} of {split.n_viewed}"
    if f"{split.name}/pooled" in split.contents:
        width = split.contents.places[f"{split.name}/pooled"].shape[1]
        words += f", {width} wide before the projection"
    return words


def _size_words(store: FeatureStore) -> str:
    files = store.contents.files
    size = sum(file.stamp.size for file in files)
    parts = f" with {count(len(files) - 1, 'part')}" if len(files) > 1 else ""
    return f"{store.contents.address}{parts}, {size:,} bytes"


def _range(counts: NDArray[np.int64]) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(below)}" for key, below in value.items())
    text = str(value)
    return text[:12] if len(text) == 64 else text
