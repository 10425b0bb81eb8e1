"""Accuracies, all in 0..1, and what they come to over seeds and over base and new classes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def accuracy(predicted: "Tensor", labels: "Tensor") -> float:
    """Share of the (M,) predicted classes that equal the (M,) labels."""
    return float((predicted == labels).double().mean())


def per_class_accuracy(predicted: "Tensor", labels: "Tensor") -> float:
    """Mean over the classes that have an image of the accuracy within the class."""
    right = labels[predicted == labels].bincount(minlength=int(labels.max()) + 1)
    total = labels.bincount()
    present = total > 0
    return float((right[present] / total[present]).double().mean())


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
