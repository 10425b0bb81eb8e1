"""A few-shot sample as a JSON file, by the images' paths, so that it fits any store of its dataset.

{"dataset": "dtd", "shots": 1, "seed": 1, "train": ["banded/banded_0117.jpg", ...], "val": null}
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from cache.atomic import replacing
from cache.errors import UserError
from cache.store import FeatureStore
from cache.validation import problem
from fewshot.run import Count, Seed
from fewshot.sampling import VAL_SHOTS, Rows, Sample, require_shots


@dataclass(frozen=True)
class _File:
    """The content of a sample's file."""

    dataset: str
    shots: Annotated[Count, Ge(1)]
    seed: Seed
    train: list[str]
    val: list[str] | None

    __pydantic_config__: ClassVar[dict[str, object]] = {"strict": True, "extra": "forbid"}


def write_sample(path: Path | str, sample: Sample, store: FeatureStore) -> None:
    """Write a sample of the store's splits; a file that is there is replaced."""
    content = {
        "dataset": store.dataset,
        "shots": sample.shots,
        "seed": sample.seed,
        "train": _paths(store, "train", sample.train),
        "val": None if sample.val is None else _paths(store, "val", sample.val),
    }
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_sample(path: Path | str, store: FeatureStore) -> Sample:
    """Read a sample, and find its images among the store's.

    Raises:
        UserError: No such file, or not of this form; of another dataset; an image that the split
            does not have or that is listed twice; or too few or too many images of a class.
    """
    path = Path(path)
    content = _read(path)
    if content.dataset != store.dataset:
        raise UserError(
            f"{path} is a sample of {content.dataset:.80}, not of {store.dataset}; "
            "give the one that fits"
        )
    shots, seed = content.shots, content.seed
    train_rows = _find(path, "train", content.train, shots, store)
    if content.val is None:
        return Sample(shots, seed, train_rows)
    val_rows = _find(path, "val", content.val, min(shots, VAL_SHOTS), store)
    return Sample(shots, seed, train_rows, val_rows)


def _paths(store: FeatureStore, split: str, rows: Rows) -> list[str]:
    paths = store.paths(split)
    return [paths[row] for row in rows]


def _read(path: Path) -> _File:
    from pydantic import TypeAdapter, ValidationError

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the sample {path}: {error.strerror}; name another") from None
    try:
        return TypeAdapter(_File).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path}: {problem(error)}; export the sample again") from None


def _find(path: Path, split: str, wanted: list[str], shots: int, store: FeatureStore) -> Rows:
    """(n,) rows of the images in the store's split, so many of each class."""
    twice = [image for image, n in Counter(wanted).items() if n > 1]
    if twice:
        raise UserError(f"{path} lists {twice[0]!r:.80} twice in {split}; list every image once")
    row_of = {image: row for row, image in enumerate(store.paths(split))}
    unknown = [image for image in wanted if image not in row_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(wanted)} images in {path} are not in the store's {split} "
            f"split, such as {unknown[0]!r:.80}; use the split that the sample was drawn from"
        )
    rows = np.array([row_of[image] for image in wanted], np.int64)
    labels = store.labels(split)[rows]
    require_shots(f"{split} ({path})", labels, store.classnames, shots, exactly=True)
    return rows
