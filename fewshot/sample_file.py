"""A few-shot sample as a JSON file, by the images' paths, so that it fits any store of its dataset.

{"dataset": "dtd", "shots": 1, "seed": 1, "train": ["banded/banded_0117.jpg", ...], "val": null}

Published lists are read as well: a path and a label in each line, and the seed in the file's name,
as in NOAH's train_meta.list.num_shot_1.seed_0.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from cache.errors import UserError, excerpt
from cache.files.atomic import replacing
from cache.files.validation import problem
from cache.store import FeatureStore
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
            does not have or that is listed twice; an image of another class than the list says;
            or too few or too many images of a class.
    """
    path = Path(path)
    raw = _bytes(path)
    if not raw.lstrip().startswith((b"{", b"[")):
        return _listed(path, raw, store)
    content = _parsed(path, raw)
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


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the sample {path}: {error.strerror}; name another") from None


def _parsed(path: Path, content: bytes) -> _File:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(_File).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path}: {problem(error)}; export the sample again") from None


def _listed(path: Path, content: bytes, store: FeatureStore) -> Sample:
    """The sample of a published list, in which an image that is listed twice counts once."""
    labels: dict[str, int] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        image, _, label = line.strip().rpartition(" ")  # names of files may hold spaces
        if line.strip() and not (image and label.isascii() and label.isdigit()):
            raise UserError(
                f"{path}, line {number}: expected a sample in JSON, or a path and a label in each "
                f"line; got {excerpt(line)}"
            )
        if image and labels.setdefault(image, int(label)) != int(label):
            raise UserError(f"{path}, line {number}: {excerpt(image)} has two labels")
    if not labels:
        raise UserError(f"{path} lists no image; get it again")
    shots = max(Counter(labels.values()).values())
    of_store = store.paths("train")
    below = {name.removeprefix("train/"): name for name in of_store}  # as ImageNet's lists have it
    wanted = [below.get(image, image) for image in labels]
    rows = _find(path, "train", wanted, shots, store)
    theirs = np.array(list(labels.values()))
    wrong = np.flatnonzero(store.labels("train")[rows] != theirs)
    if wrong.size:
        k = int(wrong[0])
        ours = int(store.labels("train")[rows[k]])
        raise UserError(
            f"{path} gives {excerpt(wanted[k])} the label {theirs[k]}, which the store has as "
            f"{ours}, {store.classnames[ours]}; the list is of another order of classes"
        )
    seed = re.search(r"seed_?(\d+)$", path.stem if path.suffix == ".txt" else path.name)
    return Sample(shots, int(seed[1]) if seed else 0, rows)


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
    counts = np.bincount(labels, minlength=store.n_classes)
    require_shots(f"{split} ({path})", counts, store.classnames, shots, exactly=True)
    return rows
