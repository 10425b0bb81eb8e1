"""Recall, precision and F1 of each class, and the classes most often confused."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassMetrics:
    """Recall, precision and F1 of one class, as counts.

    Attributes:
        label: The class.
        images: Images of the class that were judged.
        predicted: Images predicted as the class, rightly or not.
        right: Images of the class that were predicted as it.
    """

    label: int
    images: int
    predicted: int
    right: int

    @property
    def recall(self) -> float | None:
        """Share of its images that were recognized, its accuracy; None without any."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of the images taken for it that are of it; None where there were none."""
        return self.right / self.predicted if self.predicted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of recall and precision; None without any of its images."""
        return 2 * self.right / (self.images + self.predicted) if self.images else None


@dataclass(frozen=True)
class Confusion:
    """Images of one class taken for another.

    Attributes:
        label: The true class.
        predicted: The predicted class.
        count: Number of images.
        rows: Some of them, the most confident mistakes first.
    """

    label: int
    predicted: int
    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are confused.

    Attributes:
        more: The more frequent direction.
        less: The opposite direction; its count may be 0.
    """

    more: Confusion
    less: Confusion

    @property
    def count(self) -> int:
        """Confusion either way."""
        return self.more.count + self.less.count


def class_metrics(
    probabilities: Tensor, labels: Tensor, judged: Tensor
) -> tuple[ClassMetrics, ...]:
    """Return the metrics of each class, in the order of the classes.

    Args:
        probabilities: (N, C), or logits.
        labels: (N,) class ids.
        judged: (N,) bool.
    """
    n_classes = probabilities.shape[1]
    predicted, truth = probabilities[judged].argmax(dim=1), labels[judged]
    counts = [
        torch.bincount(ids, minlength=n_classes).tolist()
        for ids in (truth, predicted, truth[predicted == truth])
    ]
    return tuple(ClassMetrics(k, *counted) for k, counted in enumerate(zip(*counts, strict=True)))


def confused_pairs(
    probabilities: Tensor, labels: Tensor, judged: Tensor, *, n: int = 10, examples: int = 4
) -> tuple[ConfusedPair, ...]:
    """Return the n pairs of classes with most mistakes in both directions; ties keep order.

    Args:
        probabilities: (N, C), calibrated if the surest mistakes are to come first.
        labels: (N,) class ids.
        judged: (N,) bool.
        n: Maximum number of pairs.
        examples: Maximum number of rows of each direction.
    """
    n_classes = probabilities.shape[1]
    rows = torch.nonzero(judged).flatten()
    confidence, predicted = probabilities[rows].max(dim=1)
    wrong = torch.nonzero(predicted != labels[rows]).flatten()
    wrong = wrong[torch.argsort(confidence[wrong], descending=True, stable=True)]
    kind = labels[rows[wrong]] * n_classes + predicted[wrong]
    counts = torch.bincount(kind, minlength=n_classes**2).view(n_classes, n_classes)
    both = (counts + counts.T).triu(1).flatten()
    pairs = []
    for pair in torch.argsort(both, descending=True, stable=True)[:n].tolist():
        if both[pair] == 0:
            break
        a, b = divmod(pair, n_classes)
        one, other = (
            Confusion(x, y, int(counts[x, y]), tuple(rows[of[:examples]].tolist()))
            for x, y in ((a, b), (b, a))
            for of in [wrong[kind == x * n_classes + y]]
        )
        less, more = (other, one) if one.count >= other.count else (one, other)
        pairs.append(ConfusedPair(more, less))
    return tuple(pairs)
