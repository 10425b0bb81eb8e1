"""Features computed elsewhere become a store like any other, marked as imported."""

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache.datasets.listing import SPLIT_RULE
from cache.errors import UserError, unknown
from cache.extraction.store_writer import create
from cache.files.json_text import canonical_json
from cache.importing.import_arrays import recognize
from cache.importing.import_files import Arrays, open_arrays
from cache.importing.imported import Imported
from cache.location import model_name, store_path
from cache.store import FeatureStore

IF_EXISTS = ("resume", "skip", "overwrite", "error")
PROMPT_SET = "imported"
BLOCK = 16_384


def import_file(
    file: Path,
    dataset: str,
    model: str,
    root: Path,
    *,
    arrays: Mapping[str, str] | None = None,
    if_exists: str = "error",
    logit_scale: float = 100.0,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The path of a store made from a `.npz`, a `.pt` or a folder of `.pt` files.

    Arrays go by the names in `imported.NAMES`: `train_features`, `train_labels` and so on for
    each split, or `features` and `labels`, which are then split 50/20/30 within each class; and
    labels are (N,) class ids, or (N, C) of 0 and 1 where an image may have several;
    `text_features`, (C, D) for one classifier or (T, C, D) for T templates; and `attributes`,
    (C, A). Tip-Adapter's and
    CLIP_benchmark's folders are known by their files' names, and so is a proposed split of
    zero-shot learning; see `mat_files`. Features of any norm will do.

    Args:
        file: Where the arrays are.
        dataset: The store's dataset.
        model: The model that made the features.
        root: The folder of stores.
        arrays: Names of arrays that go by other ones: {"train_features": "train16_x"}.
        if_exists: "error", "skip" (leave any store alone), "overwrite", or "resume" (leave a
            store of the same arrays alone, refuse another).
        logit_scale: The model's inverse temperature, above 0.
        say: Called with which array was taken for what, and which for nothing.

    Raises:
        UserError: The file cannot be read, an array is missing or of the wrong shape, labels
            do not fit the class names, a feature is NaN or zero, or the store exists.
    """
    if if_exists not in IF_EXISTS:
        raise unknown("--if-exists", if_exists, IF_EXISTS)
    if not 0 < logit_scale < math.inf:
        raise UserError(
            f"the logit scale must be a finite number above 0; got {logit_scale}; CLIP's is 100"
        )
    path = store_path(root, dataset, model)
    if path.exists() and if_exists == "skip":
        return path
    if path.exists() and if_exists == "error":
        raise UserError(f"{path} exists; --if-exists skip or overwrite says what to do")
    found = open_arrays(file)
    imported = recognize(found, arrays or {})
    say("taken: " + ", ".join(f"{target} = {name}" for target, name in imported.names.items()))
    unused = sorted(set(found.names) - set(imported.names.values()))
    if unused:
        say(f"not used: {', '.join(unused)}; --array NAME=KEY says what such an array is")
    identity = {
        "dataset": _dataset_identity(dataset, file.name, imported),
        "model": {"name": model_name(model), "logit_scale": logit_scale},
        "preprocessing": "unknown",
        "precision": "unknown",
        "text": {}
        if imported.text is None
        else {PROMPT_SET: _digest(imported.text.embeddings.tobytes())},
        "views": None,
        "support_only": None,
        "import": {"arrays": dict(imported.names), "files": _digests(found, imported)},
    }
    if path.exists() and if_exists == "resume":
        FeatureStore.open(path).require(identity)
    else:
        _write(path, identity, imported)
    return path


def _write(path: Path, identity: Mapping[str, Any], imported: Imported) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "h5py")}
    with create(
        path,
        identity=identity,
        classnames=imported.classnames,
        versions=versions,
        imported=True,
    ) as writer:
        for name, split in imported.splits.items():
            n_rows, dim = split.features.shape
            writer.split(
                name, labels=split.labels, label_sets=split.label_sets, paths=split.paths, dim=dim
            )
            for start in range(0, n_rows, BLOCK):
                writer.write(name, start, split.features[start : start + BLOCK])
        if imported.attributes is not None:
            writer.attributes(imported.attributes)
        if imported.text is not None:
            text = imported.text
            writer.text(PROMPT_SET, text.embeddings, text.labels, text.prompts)


def _dataset_identity(dataset: str, source: str, imported: Imported) -> dict[str, Any]:
    several = any(split.label_sets is not None for split in imported.splits.values())
    return {
        "name": dataset,
        **({"multi_label": True} if several else {}),
        "origin": f"imported from {source}" + (f", {SPLIT_RULE}" if imported.stratified else ""),
        "classnames": _digest(canonical_json(imported.classnames).encode()),
        "sizes": {name: len(split.labels) for name, split in imported.splits.items()},
    }


def _digests(found: Arrays, imported: Imported) -> dict[str, str]:
    files = {found.file(name) for name in imported.names.values()}
    digests = {}
    for path in sorted(files):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
