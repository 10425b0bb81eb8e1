"""Accuracy, recall, precision and F1, all in 0..1, and their means over classes and seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClassMetrics:
    """Recall, precision and F1 of one class, as counts.

    A share of no images is None. scikit-learn calls it 0, and warns.

    Attributes:
        images: Images of the class.
        predicted: Images predicted as the class, rightly or not.
        right: Images of the class that were predicted as it.
    """

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
        """Harmonic mean of recall and precision, 0 if none was right; None without its images."""
        return 2 * self.right / (self.images + self.predicted) if self.images else None


def class_metrics(
    predicted: ArrayLike, labels: ArrayLike, n_classes: int
) -> tuple[ClassMetrics, ...]:
    """Return the C metrics of each class of (M,) predicted and (M,) true class ids."""
    predicted, labels = np.asarray(predicted, np.int64), np.asarray(labels, np.int64)
    counts = [
        np.bincount(ids, minlength=n_classes)[:n_classes].tolist()
        for ids in (labels, predicted, labels[predicted == labels])
    ]
    return tuple(ClassMetrics(*counted) for counted in zip(*counts, strict=True))


def macro(values: Iterable[float | None]) -> float:
    """Mean over the classes of which the value is known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known)


def accuracy(predicted: "Tensor", labels: "Tensor") -> float:
    """Share of the (M,) predicted classes that equal the (M,) labels."""
    return float((predicted == labels).double().mean())


def per_class_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the classes that have an image of the accuracy within the class, its recall."""
    n_classes = int(np.asarray(labels).max()) + 1
    return macro(one.recall for one in class_metrics(predicted, labels, n_classes))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of the values and half the width of its confidence interval, by Student's t.

    The values are taken as independent draws, one per seed. One value has no interval: NaN.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)


def harmonic_mean(base: float, new: float) -> float:
    """Harmonic mean of the accuracies on base and new classes; 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def wilson(accuracy: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of n, 95 % without another z.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    middle = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = math.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2)) * z / (1 + z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
