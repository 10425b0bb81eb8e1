"""Stores of some animals, their few shots, and small methods that learn from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.extraction.store_writer import create
from cache.store import FeatureStore
from fewshot import (
    LinearClassifier,
    Method,
    NearestMean,
    SupportSet,
    draw,
)
from fewshot.text import Text, required

DIM = 12
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
BASE, NEW = (0, 1, 2, 3), (4, 5, 6)


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def zoo_at(
    path: Path,
    *,
    names: Sequence[str] = NAMES,
    ids: Sequence[str] | None = None,
    model: str = "noise",
    sizes: Sequence[int] = (9,) * 7,
    test: int = 84,
    test_labels: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    text: bool = True,
) -> FeatureStore:
    """A store of noise about the centers of its classes, which their names alone decide.

    Args:
        path: Its folder names the dataset.
        names: Of the classes.
        ids: Of the classes.
        model: The model's name.
        sizes: Train images of each class; val has three of each.
        test: Test images.
        test_labels: What they are labeled, whatever they are.
        rows: Train rows that were encoded.
        text: Whether there is text.
    """
    centers = np.stack([noise(sum(map(ord, ids[k] if ids else name)), DIM)
                        for k, name in enumerate(names)])  # fmt: skip
    dataset: dict[str, Any] = {"name": path.parent.name}
    identity = {
        "dataset": dataset if ids is None else {**dataset, "class_ids": list(ids)},
        "model": {"name": model, "logit_scale": 40.0},
        "support_only": None if rows is None else {"shots": 1},
    }
    rng = np.random.default_rng(0)
    labels = {
        "train": rng.permutation(np.repeat(np.arange(len(names)), sizes[: len(names)])),
        "val": np.arange(3 * len(names)) % len(names),
        "test": rng.permutation(np.arange(test) % len(names)),
    }
    with create(path, identity=identity, classnames=names, versions={}) as writer:
        for seed, (split, here) in enumerate(labels.items(), start=1):
            features = centers[here] + 1.5 * noise(seed, len(here), DIM)
            kept = rows if split == "train" and rows is not None else range(len(here))
            told = here if split != "test" or test_labels is None else np.asarray(test_labels)
            paths = [f"{i}.jpg" for i in range(len(here))]
            writer.split(split, labels=told, paths=paths, dim=DIM, rows=kept)
            writer.write(split, 0, features[list(kept)])
        if text:
            prompts = centers.repeat(2, axis=0) + 2 * noise(8, 2 * len(names), DIM)
            whose = np.arange(len(names)).repeat(2)
            writer.text("templates", prompts, whose, [f"prompt {i}" for i in range(len(whose))])
    return FeatureStore.open(path)


def tensors(zoo: FeatureStore, split: str, wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features and labels of the images of these classes, numbered in this order."""
    labels = zoo.labels(split)
    rows = np.flatnonzero(np.isin(labels, wanted))
    new = [list(wanted).index(one) for one in labels[rows]]
    return torch.from_numpy(zoo.features(split, rows)), torch.tensor(new)


def share(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


def few(zoo: FeatureStore, shots: int, seed: int, wanted: Sequence[int]) -> SupportSet:
    """The few shots of all classes, cut down to these."""
    rows = draw(zoo.labels("train"), NAMES, shots=shots, seed=seed).train
    rows = rows[np.isin(zoo.labels("train")[rows], wanted)]
    new = [list(wanted).index(one) for one in zoo.labels("train")[rows]]
    return SupportSet(torch.from_numpy(zoo.features("train", rows)), torch.tensor(new), len(wanted))


def text_of(zoo: FeatureStore, wanted: Sequence[int]) -> Text:
    return Text(torch.from_numpy(zoo.text())[list(wanted)])


@dataclass(frozen=True)
class Echo(Method):
    """Nearest mean of base classes, the text's of new ones; its one field is tuned."""

    weight: float = 1.0

    name: ClassVar[str] = "echo"
    grid: ClassVar[Any] = {"weight": (0.0, 0.5, 1.0)}

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        means = NearestMean().fit(support, None).weight
        return LinearClassifier(self.weight * means + 50 * required(text, self.name))

    def fit_new_classes(
        self, support: SupportSet, text: Text | None, new: Text
    ) -> LinearClassifier:
        shift = required(text, self.name).mean(dim=0) - support.features.mean(dim=0)
        return LinearClassifier(new.features - self.weight * shift)
