"""The classes most often confused."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
