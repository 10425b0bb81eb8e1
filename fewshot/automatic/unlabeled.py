"""Classify the images without a label, and choose which of them to label next."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.images.skipped import Skipped
from cache.store import FeatureStore
from fewshot.automatic.to_label import ToLabel, to_label
from fewshot.fitted import Fitted
from fewshot.store_features import query

BLOCK = 4096  # images whose logits are computed at a time
WORTH_LABELING = 20


@dataclass(frozen=True, eq=False)
class Unlabeled:
    """U images that have no label.

    Attributes:
        source: Where they are.
        paths: U of them, relative to its root.
        probabilities: (U, C) float32, calibrated.
        next: The images to label first.
        skipped: Images that could not be read.
    """

    source: Source
    paths: tuple[str, ...]
    probabilities: Tensor
    next: tuple[ToLabel, ...]
    skipped: tuple[Skipped, ...]


def classify_unlabeled(
    fitted: Fitted, temperature: float, store: FeatureStore, source: Source
) -> Unlabeled:
    """Return the probabilities of the images in a store, and which to label next.

    Args:
        fitted: The classifier.
        temperature: T of softmax(logits / T).
        store: Features of the images, its test split.
        source: Where they are.
    """
    features = query(store.split("test"), fitted.method)
    probabilities = torch.cat(
        [
            torch.softmax(fitted.classifier.logits(part) / temperature, dim=1)
            for part in torch.split(features, BLOCK)
        ]
    )
    return Unlabeled(
        source,
        tuple(store.paths("test")),
        probabilities,
        to_label(features, probabilities, WORTH_LABELING),
        store.skipped,
    )
