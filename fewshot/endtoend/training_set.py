"""The part of a dataset that a training may see: few shots with labels, or images without."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.datasets.source import Item, Source
from fewshot.endtoend.clip import EndToEnd
from fewshot.few_shots import base_and_new
from fewshot.open_set import checked_known, known_classes
from fewshot.protocol import Protocol
from fewshot.sampling import Rows, Sample, draw, everything, restrict


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images to train on.

    Attributes:
        items: N of the train split; of the training, their paths are all that it may look at.
        rows: (N,) their rows in it.
        labels: (N,) class ids; of unlabeled images their own numbers, from 0.
        shots: K, or the images of the largest class; 0 without labels.
        classes: The ids of the classes to tell apart; those without images among them where
            features of them are synthesized.
    """

    items: Sequence[Item]
    rows: Rows
    labels: Tensor
    shots: int
    classes: Sequence[int]

    @classmethod
    def of(
        cls, method: EndToEnd, source: Source, protocol: Protocol, val_first: bool
    ) -> "TrainingSet":
        """That of a protocol.

        Args:
            method: One that learns from unlabeled images gets all of them, of any class.
            source: The dataset.
            protocol: What is asked; from base to new, few shots of all classes are drawn first,
                and those of base classes kept.
            val_first: Draw the few shots as CLIP-LoRA's code does; see `sampling.draw`.

        Raises:
            UserError: Too few images of a class, or what `known_classes` objects to.
        """
        train = source.splits["train"]
        classes: Sequence[int] = range(len(source.classnames))
        if method.unsupervised():
            if protocol.known is not None:
                classes = known_classes(source.classnames, checked_known(protocol.known))
            return cls(train, np.arange(len(train)), torch.arange(len(train)), 0, classes)
        sample = _drawn(source, protocol, val_first)
        rows = sample.train
        if protocol.setting == "base-to-new":
            base, _ = base_and_new(source, protocol.setting)
            rows = rows[restrict([train[row].label for row in rows], base)[0]]
            classes = classes if protocol.synthesize else base
        items = [train[row] for row in rows]
        labels = torch.tensor([item.label for item in items])
        return cls(items, rows, labels, sample.shots, classes)

    @property
    def mean_shots(self) -> int:
        """Images of a class that has some, on average and rounded up; K where all have K."""
        return math.ceil(len(self.labels) / len(set(self.labels.tolist()))) if self.shots else 0

    @property
    def without_images(self) -> list[int]:
        """Ids of the classes that have no image, which is possible where all images are taken."""
        return sorted(set(self.classes) - set(self.labels.tolist())) if self.shots else []

    @property
    def paths(self) -> list[str]:
        """N paths, relative to the dataset's root."""
        return [item.path for item in self.items]


def _drawn(source: Source, protocol: Protocol, val_first: bool) -> Sample:
    """The few shots; with `val_first` as CLIP-LoRA's code draws them."""
    labels = [item.label for item in source.splits["train"]]
    if protocol.shots == "all":
        return everything(labels, seed=protocol.seed)
    if not val_first or protocol.sample is not None:
        return protocol.draw(labels, source.classnames)
    val_labels = [item.label for item in source.splits.get("val", ())]
    return draw(
        labels, source.classnames, shots=int(protocol.shots), seed=protocol.seed,
        val_labels=val_labels or None, val_first=True,
    )  # fmt: skip
