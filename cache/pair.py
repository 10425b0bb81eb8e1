"""Two stores of the same images, read as one: features of one backbone beside those of another.

A feature is [sqrt(w) a, sqrt(1 - w) b] of unit vectors a and b, so the cosine of two images is
w times the first backbone's plus 1 - w times the second's. Text is the second's, [0, t]. The logit
scale makes up for sqrt(1 - w), so zero-shot logits are exactly the second's.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.class_text import ClassText
from cache.errors import UserError
from cache.identity import fingerprint
from cache.location import find_store, find_stores, pair_names
from cache.split import Split
from cache.store import FeatureStore

EVEN = 0.5  # the weight where none was chosen


@dataclass(frozen=True)
class Pair(FeatureStore):
    """A store whose features are two stores'; all else is the second's. Made by `paired`.

    Attributes:
        beside: The first store.
        alone: The second store.
        weight: w, the first backbone's, from 0 to below 1; None for `EVEN`, as nothing chose yet.
    """

    beside: FeatureStore = field(kw_only=True)
    alone: FeatureStore = field(kw_only=True)
    weight: float | None = field(default=None, kw_only=True)

    @property
    def share(self) -> float:
        """The weight in use."""
        return EVEN if self.weight is None else self.weight

    @property
    def logit_scale(self) -> float:
        """The second model's inverse temperature over sqrt(1 - w)."""
        return super().logit_scale / math.sqrt(1 - self.share)

    def at(self, weight: float) -> "Pair":
        """The same pair with that weight.

        Raises:
            UserError: It is not from 0 to below 1.
        """
        if not 0 <= weight < 1:
            raise UserError(f"a pair's weight must be from 0 to below 1; got {weight}")
        return replace(self, weight=weight)

    def reopened(self) -> "Pair":
        """The same pair, its files opened again; see `FeatureStore.reopened`."""
        again = paired(self.beside.reopened(), self.alone.reopened())
        return replace(again, weight=self.weight)

    @property
    def image_tower(self) -> None:
        """None: the layers of one model make no features of two."""

    def split(self, name: str) -> "PairSplit":
        """The split of that name; see `FeatureStore.split`."""
        second, first = super().split(name), self.beside.split(name)
        return PairSplit(
            second.contents, second.name, second.only, second.remake, first, self.share
        )

    def class_text(self, recipe: str = "unit-mean", prompt_set: str | None = None) -> ClassText:
        """The second store's text, zero where the first backbone's features are."""
        text = super().class_text(recipe, prompt_set)
        width = self.beside.dim
        return replace(
            text,
            features=_after_zeros(text.features, width),
            prompts=_after_zeros(text.prompts, width),
            projection=None if text.projection is None else _after_zeros(text.projection, width),
        )


@dataclass(frozen=True)
class PairSplit(Split):
    """One split of a pair.

    Attributes:
        beside: The same split of the first store.
        weight: w.
    """

    beside: Split
    weight: float

    def features(self, rows: ArrayLike | None = None, *, unit: bool = True) -> NDArray[np.float32]:
        """(n, D) features; not of unit norm, they have the second encoder's norms."""
        second = super().features(rows, unit=unit)
        return side_by_side(self.beside.features(rows), second, self.weight)

    def views(self, rows: ArrayLike, *, unit: bool = True) -> NDArray[np.float32]:
        """(V, n, D) augmented views; norms as in `features`."""
        second = super().views(rows, unit=unit)
        return side_by_side(self.beside.views(rows), second, self.weight)

    def pooled(self, rows: ArrayLike | None = None) -> NDArray[np.float32]:
        """Raise: the last layers are one model's.

        Raises:
            UserError: Always.
        """
        raise UserError("a pair of models has no pooled images; give --model one of the two")


def side_by_side(
    first: NDArray[np.float32], second: NDArray[np.float32], weight: float
) -> NDArray[np.float32]:
    """(..., D) a pair's features, of the norm that the second's have.

    Args:
        first: (..., D1) the first model's, of unit norm.
        second: (..., D2) the second's, of any norm.
        weight: w.
    """
    norms = np.linalg.norm(second, axis=-1, keepdims=True)
    parts = (math.sqrt(weight) * norms * first, math.sqrt(1 - weight) * second)
    return np.concatenate(parts, axis=-1, dtype=np.float32)


def paired(first: FeatureStore, second: FeatureStore) -> Pair:
    """Two stores of the same images as one, whose text is the second's.

    Raises:
        UserError: Images, labels, classes or views differ, or either is a pair.
    """
    if isinstance(first, Pair) or isinstance(second, Pair):
        raise UserError("a pair is of two models; got three")
    differing = _difference(first, second)
    if differing:
        raise UserError(
            f"{first.path} and {second.path} are no pair: they differ in {differing}; extract both "
            "from the same images"
        )
    name = f"{first.model}+{second.model}"
    dim = first.dim + second.dim
    identity = {
        **second.identity,
        "model": {**second.identity["model"], "name": name, "dim": dim},
        "pair": [first.fingerprint, second.fingerprint],
    }
    values: dict[str, Any] = {
        **vars(second),
        "identity": identity,
        "fingerprint": fingerprint(identity),
        "dim": dim,
    }
    return Pair(**values, beside=first, alone=second)


def found(root: Path, dataset: str | None, model: str | None) -> tuple[FeatureStore, bool]:
    """The store of a dataset and a model under a folder, or the pair of two models.

    Args:
        root: The folder of stores, or one store's file.
        dataset: As in `location.find_store`; without it, a store that learns and is tested comes
            before one that has only train or only test images, such as those that `auto` makes.
        model: A model, or a pair `FIRST+SECOND`; any model without it.

    Returns:
        It, and whether there were others to choose from.

    Raises:
        UserError: What `location.find_store` and `paired` raise.
    """
    names = None if model is None else pair_names(model)
    alone = model if names is None else names[1]
    path, chosen = find_store(root, dataset, alone)
    second = FeatureStore.open(path)
    if dataset is None and chosen:
        of_model = (p for p in find_stores(root) if alone is None or p.name == path.name)
        every = map(FeatureStore.open, of_model)
        second = next((one for one in every if {"train", "test"} <= {*one.splits}), second)
    if names is None:
        return second, chosen
    if root.is_file():
        raise UserError(f"a pair is of two stores, and {root} is one; give --store their folder")
    return paired(FeatureStore.open(find_store(root, second.dataset, names[0])[0]), second), chosen


def same_weight(store: FeatureStore, other: FeatureStore) -> FeatureStore:
    """The store; of two pairs, the first with the weight of the second."""
    if isinstance(store, Pair) and isinstance(other, Pair):
        return replace(store, weight=other.weight)
    return store


def _difference(first: FeatureStore, second: FeatureStore) -> str:
    """The first thing that differs and must not in stores of the same images; else empty."""
    if first.classnames != second.classnames:
        return "their classes"
    if first.splits != second.splits:
        return "their splits"
    for name in first.splits:
        a, b = first.split(name), second.split(name)
        if a.paths != b.paths:
            return f"the paths of their {name} images"
        if a.multi_label != b.multi_label or not np.array_equal(_labels(a), _labels(b)):
            return f"the labels of their {name} images"
        if not np.array_equal(a.encoded, b.encoded):
            return f"which {name} images are encoded"
    if _upright(first) != _upright(second):
        return "whether photos are turned upright"
    digests = first.versions.get("images"), second.versions.get("images")
    if None not in digests and digests[0] != digests[1]:
        return "the contents of their images"
    return "" if _views(first) == _views(second) else "their augmented views"


def _labels(split: Split) -> NDArray[Any]:
    return split.label_sets if split.multi_label else split.labels


def _upright(store: FeatureStore) -> bool:
    return bool(store.preprocessing.get("exif", True))


def _views(store: FeatureStore) -> tuple[Any, ...]:
    return store.identity.get("views"), *(store.split(name).n_views for name in store.splits)


def _after_zeros(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    return np.pad(vectors, ((0, 0), (width, 0)))
