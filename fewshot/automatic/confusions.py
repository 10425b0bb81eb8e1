"""Which classes are taken for one another, and how each class fares."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassFigures:
    """How one class fared.

    Attributes:
        label: The class.
        images: How many of it were judged.
        predicted: How many images were taken for it, rightly or not.
        right: How many of it were recognized.
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


@dataclass(frozen=True)
class Mistakes:
    """Images of one class taken for another.

    Attributes:
        label: What they are.
        predicted: What they were taken for.
        count: How many.
        rows: Some of them, the surest mistakes first.
    """

    label: int
    predicted: int
    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """Two classes that are confused.

    Attributes:
        more: The commoner of the two mistakes.
        less: The opposite one; its count may be 0.
    """

    more: Mistakes
    less: Mistakes

    @property
    def count(self) -> int:
        """Mistakes either way."""
        return self.more.count + self.less.count


def class_figures(
    probabilities: Tensor, labels: Tensor, judged: Tensor
) -> tuple[ClassFigures, ...]:
    """How each class fared, in the order of the classes.

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
    return tuple(ClassFigures(k, *figures) for k, figures in enumerate(zip(*counts, strict=True)))


def confused_pairs(
    probabilities: Tensor, labels: Tensor, judged: Tensor, *, n: int = 10, examples: int = 4
) -> tuple[Pair, ...]:
    """The n pairs of classes with most mistakes either way, of equals the first.

    Args:
        probabilities: (N, C), calibrated if the surest mistakes are to come first.
        labels: (N,) class ids.
        judged: (N,) bool.
        n: Pairs at most.
        examples: Rows of each kind of mistake at most.
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
            Mistakes(x, y, int(counts[x, y]), tuple(rows[of[:examples]].tolist()))
            for x, y in ((a, b), (b, a))
            for of in [wrong[kind == x * n_classes + y]]
        )
        less, more = (other, one) if one.count >= other.count else (one, other)
        pairs.append(Pair(more, less))
    return tuple(pairs)
