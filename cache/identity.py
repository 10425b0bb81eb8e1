"""The identity of a store: all that changes a byte of it, spelled, compared and digested."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError
from cache.files.json_text import canonical_json
from cache.images.skipped import Skipped

if TYPE_CHECKING:  # a store is opened without what encodes one
    from cache.datasets.source import Source
    from cache.models.encoder import Encoder
    from cache.prompts import PromptSet


@dataclass(frozen=True)
class Recipe:
    """The contents of a store besides one feature per image.

    Attributes:
        prompts: The prompt sets to encode.
        views: V, augmented crops per train image.
        crop_scale: Minimum and maximum share of the area a view keeps.
        view_seed: Seed of the views.
        train_rows: The only train rows to encode, or None for all.
        support_only: Shots and seeds that `train_rows` serve, as the store records them.
        left_out: Images that were taken out of the source as unreadable.
        pre_projection: Keep what the image tower's last layers make each feature of, too.

    Raises:
        UserError: `crop_scale` is no such pair.
    """

    prompts: Mapping[str, "PromptSet"]
    views: int = 0
    crop_scale: tuple[float, float] = (0.5, 1.0)
    view_seed: int = 0
    train_rows: NDArray[np.int64] | None = None
    support_only: Mapping[str, Any] | None = None
    left_out: Sequence[Skipped] = ()
    pre_projection: bool = False

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(
                f"--crop-scale must be two shares of the area, 0 < minimum <= maximum <= 1; got "
                f"{low:g} and {high:g}"
            )

    def rows(self, source: "Source") -> dict[str, NDArray[np.int64]]:
        """The rows of each split that are to be encoded."""
        rows = {split: np.arange(len(items)) for split, items in source.splits.items()}
        if self.train_rows is not None:
            rows["train"] = np.unique(self.train_rows)
        return rows


def identity_of(source: "Source", encoder: "Encoder", recipe: Recipe) -> dict[str, Any]:
    """All that changes a byte of a store that is extracted, as nested plain values."""
    splits = source.splits
    items = ((split, item) for split, items in splits.items() for item in items)
    chosen = recipe.rows(source).items()
    encoded = (splits[split][int(row)].path for split, rows in chosen for row in rows)
    views = {
        "count": recipe.views,
        "crop_scale": recipe.crop_scale,
        "seed": recipe.view_seed,
        "drawn_for": "content",  # of the image; before, for its row
    }
    what: dict[str, Any] = {
        "dataset": {
            "name": source.dataset,
            "origin": source.origin,
            "sizes": {
                split: len(items) + sum(image.split == split for image in recipe.left_out)
                for split, items in source.splits.items()
            },
            "split": digest_each([split, item.path, *item.labels] for split, item in items),
            "images": digest_each(_size(source, path) for path in encoded),
            "classnames": digest(source.classnames),
        },
        "model": dict(encoder.identity),
        "preprocessing": {**encoder.preprocess.identity(), "exif": source.exif},
        "precision": encoder.precision,
        "text": {name: prompts.digest() for name, prompts in recipe.prompts.items()},
        "views": views if recipe.views else None,
        "support_only": recipe.support_only,
    }
    if source.unlabeled:
        what["dataset"]["unlabeled"] = True
    if source.multi_label:
        what["dataset"]["multi_label"] = True
    if source.class_ids is not None:
        what["dataset"]["class_ids"] = source.class_ids
    if recipe.pre_projection:
        what["pre_projection"] = True
    return plain(what)


def _size(source: "Source", path: str) -> int:
    try:
        return source.size(path)
    except OSError as error:
        raise UserError(
            f"cannot read {source.images.place(path)}: {error.strerror}; it was there when the "
            "dataset was listed; run the same command again"
        ) from error


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as JSON gives it back: lists for tuples."""
    values: dict[str, Any] = json.loads(canonical_json(identity))
    return values


def fingerprint(identity: Mapping[str, Any]) -> str:
    """64 hex digits that stand for all that changes a byte of the features."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def digest(value: object) -> str:
    """64 hex digits of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def digest_each(values: Iterable[object]) -> str:
    """The digest of a list of these values, of which a few at a time are in memory."""
    found, remaining, between = hashlib.sha256(b"["), iter(values), b""
    while some := list(islice(remaining, 4096)):
        found.update(between + json.dumps(some)[1:-1].encode())
        between = b", "
    found.update(b"]")
    return found.hexdigest()


def differences(have: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    """One phrase per dotted key whose values differ, such as `precision is 'fp32', asked for ...`.

    Digests are shortened to 12 digits; a key on one side only counts as None on the other.
    """
    there, asked = _dotted(have), _dotted(want)
    return [
        f"{key} is {_short(there.get(key))}, asked for {_short(asked.get(key))}"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _dotted(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
