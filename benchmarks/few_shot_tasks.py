"""Few-shot tasks made of stores, for benchmarks that choose something: never of a test split."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.store import FeatureStore
from fewshot import SupportSet, draw
from fewshot.model_selection.near_duplicates import scenes

HALVES = 16  # classes from which a dataset also gives two tasks of half of them
JUDGED = 100  # images to judge by, at least


@dataclass(frozen=True, eq=False)
class Task:
    """Few shots to learn from, and images to judge by.

    Attributes:
        dataset: The store's.
        name: The dataset, and which half of its classes.
        shots: K.
        support: The few shots.
        query: (M, D) images.
        labels: (M,) their classes.
        classes: The run of the store's classes.
    """

    dataset: str
    name: str
    shots: int
    support: SupportSet
    query: Tensor
    labels: Tensor
    classes: range


def tasks(store: FeatureStore, shots: tuple[int, ...], seeds: tuple[int, ...]) -> Iterator[Task]:
    """Yield a store's tasks at each number of shots and seed: all its classes, and either half.

    The few shots are of the train split. What is judged is the val split, or without one the train
    images that were not drawn, but for images of one scene with a drawn one: in UCF101 the two
    splits share recordings.
    """
    train = store.split("train")
    features, labels = torch.from_numpy(train.features(unit=True)), torch.from_numpy(train.labels)
    half = store.n_classes // 2
    parts = {"": range(store.n_classes)}
    if store.n_classes >= HALVES:
        parts |= {"/base": range(half), "/new": range(half, store.n_classes)}
    for k in (k for k in shots if k <= int(torch.bincount(labels).min())):
        for seed in seeds:
            drawn = torch.zeros(len(labels), dtype=torch.bool)
            drawn[draw(train.labels, store.classnames, shots=k, seed=seed).train] = True
            query, truth = features[~drawn], labels[~drawn]
            if "val" in store.splits:
                val = store.split("val")
                query = torch.from_numpy(val.features(unit=True))
                truth = torch.from_numpy(val.labels)
            n = int(drawn.sum())
            scene = scenes(torch.cat([features[drawn], query]), torch.cat([labels[drawn], truth]))
            apart = ~torch.isin(scene[n:], scene[:n])
            for part, classes in parts.items():
                first, end = classes.start, classes.stop
                mine = drawn & (labels >= first) & (labels < end)
                judged = apart & (truth >= first) & (truth < end)
                if int(judged.sum()) >= JUDGED:
                    support = SupportSet(features[mine], labels[mine] - first, len(classes))
                    name, rest = store.dataset + part, truth[judged] - first
                    yield Task(store.dataset, name, k, support, query[judged], rest, classes)
