"""A store looked over: `verify` reads every byte again, `inspect` says what is in it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError
from cache.hdf5 import datasets, digest, reading
from cache.store import FeatureStore

UNIT_TOLERANCE = 1e-3  # float16 keeps a component to 2^-11 of itself, and so the norm
PROJECTED_TOLERANCE = 2e-2  # of the norm: the projection may have run in bfloat16
BLOCK = 16_384


def verify(path: Path) -> list[str]:
    """What is wrong with a store, one line each; nothing if it is sound.

    Where bytes have changed since they were written, that is all it says: what they now mean
    does not matter.
    """
    try:
        store = FeatureStore.open(path)
        with reading(path) as file:
            changed = [
                f"{dataset.name}: its bytes are not the ones that were written"
                for dataset in datasets(file)
                if np.bytes_(digest(path, dataset)) != dataset.attrs.get("sha256")
            ]
            return changed or [
                *_identity_problems(store, file),
                *(p for split in store.splits for p in _split_problems(store, file[split])),
                *(p for name in store.text_sets for p in _text_problems(store, file["text"][name])),
                *(p for name in store.text_sets for p in _tower_problems(store, file, name)),
            ]
    except UserError as error:
        return [str(error)]


def inspect(path: Path) -> str:
    """A store described for a reader, over several lines."""
    store = FeatureStore.open(path)
    origin = store.identity["dataset"].get("origin")
    lines = {
        "store": f"{path}, {path.stat().st_size:,} bytes",
        "dataset": f"{store.dataset}, {store.n_classes} classes"
        + (f", {origin}" if origin else ""),
        "model": _words(store.identity["model"]),
        "features": f"{store.dim} wide" + (", imported" if store.imported else ""),
        "preprocessing": _words(store.identity.get("preprocessing")),
        "precision": _words(store.identity.get("precision")),
        "fingerprint": store.fingerprint,
        "versions": _words(store.versions),
    }
    with reading(path) as file:
        for split in store.splits:
            lines[split] = _split_words(file[split], store.n_classes)
        for name in store.text_sets:
            counts = np.bincount(file["text"][name]["labels"][:], minlength=store.n_classes)
            lines[f"text {name}"] = f"{counts.sum()} prompts, {_range(counts)} per class"
            if "pooled" in file["text"][name]:
                pooled = file["text"][name]["pooled"].shape[1]
                lines[f"text {name}"] += f", {pooled} wide before the projection"
    if store.identity.get("support_only"):
        lines["support only"] = _words(store.identity["support_only"])
    if store.skipped:
        more = ", ..." if len(store.skipped) > 10 else ""
        first = ", ".join(map(str, store.skipped[:10]))
        lines["skipped"] = f"{len(store.skipped)} images: {first}{more}"
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())


def _identity_problems(store: FeatureStore, file: Any) -> Iterator[str]:
    """Where the contents are not what the identity says they are."""
    expected = store.identity
    sizes = {
        split: len(file[split]["labels"]) + sum(image.split == split for image in store.skipped)
        for split in store.splits
    }
    views = max((store.split(split).n_views for split in store.splits), default=0)
    found = {
        "model.dim": (store.dim, expected["model"].get("dim")),
        "text": (sorted(store.text_sets), sorted(expected.get("text") or ())),
        "dataset.sizes": (sizes, expected["dataset"].get("sizes")),
        "views.count": (views, (expected.get("views") or {}).get("count", 0)),
    }
    for key, (there, said) in found.items():
        if said is not None and there != said:
            yield f"the identity says {key} {said}; the file has {there}"
    if not expected.get("support_only"):
        for split in store.splits:
            if "rows" in file[split]:
                yield f"/{split}: not all images are encoded, and the identity does not say so"


def _split_problems(store: FeatureStore, group: Any) -> Iterator[str]:
    """Shapes that do not fit, labels and rows out of range, features that are no unit vectors."""
    n_rows = len(group["labels"])
    rows = group["rows"][:] if "rows" in group else np.arange(n_rows)
    yield from _label_problems(store, group)
    yield from _shape_problems(group, {"paths": (n_rows,), "norms": rows.shape})
    yield from _row_problems(group.name, "rows", rows, n_rows)
    yield from _unit_problems(group["features"], (len(rows), store.dim), UNIT_TOLERANCE)
    yield from _norm_problems(group["norms"])
    if "views" in group:
        viewed = group["view_rows"][:]
        n_views = len(group["views"])
        yield from _row_problems(group.name, "view_rows", viewed, n_rows)
        yield from _shape_problems(group, {"view_norms": (n_views, len(viewed))})
        shape = (n_views, len(viewed), store.dim)
        yield from _unit_problems(group["views"], shape, UNIT_TOLERANCE)
        yield from _norm_problems(group["view_norms"])


def _text_problems(store: FeatureStore, group: Any) -> Iterator[str]:
    """As for a split; and every class needs a prompt."""
    labels = group["labels"][:]
    yield from _label_problems(store, group)
    yield from _shape_problems(group, {"prompts": labels.shape, "norms": labels.shape})
    yield from _unit_problems(group["embeddings"], (len(labels), store.dim), 1e-5)
    yield from _norm_problems(group["norms"])
    unserved = np.setdiff1d(np.arange(store.n_classes), labels)
    if unserved.size:
        yield f"{group.name}: {unserved.size} classes have no prompt, the first is {unserved[0]}"


def _tower_problems(store: FeatureStore, file: Any, prompt_set: str) -> Iterator[str]:
    """Text from before the projection that the projection does not take to the embeddings."""
    group = file["text"][prompt_set]
    if "pooled" not in group:
        return
    if "text_projection" not in file:
        yield f"{group.name}/pooled: there is no text_projection"
        return
    pooled, projection = group["pooled"], file["text_projection"]
    embeddings, norms = group["embeddings"][:], group["norms"][:]
    if len(pooled) != len(embeddings) or projection.shape != (*pooled.shape[1:], store.dim):
        yield (
            f"{pooled.name}: shape {pooled.shape}, which a projection of shape {projection.shape} "
            f"does not take to {embeddings.shape}"
        )
    elif embeddings.shape == (len(norms), store.dim):  # else that is what is wrong
        with np.errstate(invalid="ignore", over="ignore"):
            off = pooled[:] @ projection[:] - norms[:, None] * embeddings
            # Written so that NaN counts as bad.
            bad = int(np.sum(~(np.linalg.norm(off, axis=1) <= PROJECTED_TOLERANCE * norms)))
        if bad:
            yield f"{pooled.name}: {bad} vectors are not projected to the embeddings"


def _label_problems(store: FeatureStore, group: Any) -> Iterator[str]:
    labels = group["labels"][:]
    if labels.size and (labels.min() < 0 or labels.max() >= store.n_classes):
        yield (
            f"{group.name}/labels: {labels.min()}..{labels.max()}, "
            f"for {store.n_classes} class names"
        )


def _shape_problems(group: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        if group[name].shape != shape:
            yield f"{group.name}/{name}: shape {group[name].shape}, should be {shape}"


def _row_problems(group: str, name: str, rows: NDArray[np.int64], n_rows: int) -> Iterator[str]:
    if (np.diff(rows, prepend=-1) <= 0).any() or (rows >= n_rows).any():
        yield f"{group}/{name}: not ascending within 0..{n_rows - 1}"


def _unit_problems(dataset: Any, shape: tuple[int, ...], tolerance: float) -> Iterator[str]:
    if dataset.shape != shape:
        yield f"{dataset.name}: shape {dataset.shape}, should be {shape}"
        return
    bad = 0
    for index in np.ndindex(*shape[:-2]):
        for start in range(0, shape[-2], BLOCK):
            block = dataset[(*index, slice(start, start + BLOCK))].astype(np.float32)
            # Written so that NaN counts as bad.
            bad += int(np.sum(~(np.abs(np.linalg.norm(block, axis=1) - 1) <= tolerance)))
    if bad:
        yield f"{dataset.name}: {bad} vectors are not of unit norm"


def _norm_problems(dataset: Any) -> Iterator[str]:
    norms = dataset[...]
    bad = int(np.sum(~((norms > 0) & np.isfinite(norms))))
    if bad:
        yield f"{dataset.name}: {bad} norms are not finite and above 0"


def _split_words(group: Any, n_classes: int) -> str:
    counts = np.bincount(group["labels"][:], minlength=n_classes)
    words = f"{counts.sum()} images, {_range(counts)} per class"
    if "rows" in group:
        words += f", {len(group['rows'])} of them encoded"
    if "views" in group:
        words += f", {len(group['views'])} views of {len(group['view_rows'])}"
    return words


def _range(counts: NDArray[np.int64]) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(below)}" for key, below in value.items())
    text = str(value)
    return text[:12] if len(text) == 64 else text
