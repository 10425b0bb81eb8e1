"""A few-shot sample as a JSON file, by the images' paths, so that it fits any store of its dataset.

{"dataset": "dtd", "shots": 1, "seed": 1, "train": ["banded/banded_0117.jpg", ...], "val": null}
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cache.atomic import replacing
from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.sampling import VAL_SHOTS, Rows, Sample, require_shots


def write_sample(path: Path, sample: Sample, store: FeatureStore) -> None:
    """Write a sample of the store's splits; a file that is there is replaced."""
    content = {
        "dataset": store.dataset,
        "shots": sample.shots,
        "seed": sample.seed,
        "train": _paths(store, "train", sample.train),
        "val": None if sample.val is None else _paths(store, "val", sample.val),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_sample(path: Path, store: FeatureStore) -> Sample:
    """Read a sample, and find its images among the store's.

    Raises:
        UserError: No such file, or not of this form; of another dataset; an image that the split
            does not have or that is listed twice; or too few or too many images of a class.
    """
    content = _read(path)
    if content["dataset"] != store.dataset:
        raise UserError(
            f"{path} is a sample of {content['dataset']}, not of {store.dataset}; "
            "give the one that fits"
        )
    shots, seed, val = content["shots"], content["seed"], content["val"]
    train_rows = _find(path, "train", content["train"], shots, store)
    if val is None:
        return Sample(shots, seed, train_rows)
    return Sample(shots, seed, train_rows, _find(path, "val", val, min(shots, VAL_SHOTS), store))


def _paths(store: FeatureStore, split: str, rows: Rows) -> list[str]:
    paths = store.paths(split)
    return [paths[row] for row in rows]


def _read(path: Path) -> dict[str, Any]:
    form = {"dataset": str, "shots": int, "seed": int, "train": list, "val": list | None}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the sample {path}: {error.strerror}; name another") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); export the sample again") from None
    if not isinstance(content, dict) or set(content) != set(form):
        raise UserError(f"{path} must be a JSON object with the keys {', '.join(form)}")
    for key, kind in form.items():
        if not isinstance(content[key], kind):
            raise UserError(f"{key} in {path} has the wrong type; got {content[key]!r:.40}")
    if not all(isinstance(image, str) for image in content["train"] + (content["val"] or [])):
        raise UserError(f"train and val in {path} must list paths; export the sample again")
    return content


def _find(path: Path, split: str, wanted: list[str], shots: int, store: FeatureStore) -> Rows:
    """(n,) rows of the images in the store's split, so many of each class."""
    twice = [image for image, n in Counter(wanted).items() if n > 1]
    if twice:
        raise UserError(f"{path} lists {twice[0]!r} twice in {split}; list every image once")
    row_of = {image: row for row, image in enumerate(store.paths(split))}
    unknown = [image for image in wanted if image not in row_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(wanted)} images in {path} are not in the store's {split} "
            f"split, such as {unknown[0]!r}; use the split that the sample was drawn from"
        )
    rows = np.array([row_of[image] for image in wanted], np.int64)
    labels = store.labels(split)[rows]
    require_shots(f"{split} ({path})", labels, store.classnames, shots, exactly=True)
    return rows
