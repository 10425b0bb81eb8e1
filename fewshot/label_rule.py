"""From a classifier's logits to the labels of an image that may have several.

A logit becomes a probability by Platt's sigmoid, for each class by itself: Platt, "Probabilistic
Outputs for Support Vector Machines", 1999. A class is a label from a probability on that gives the
best F1. Both are found on images that the classifier was not fitted to.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class LabelRule:
    """A sigmoid and a threshold for each class.

    Attributes:
        slopes: (C,) factors of the logits, above 0: probabilities are sigmoid(slope logit + shift).
        shifts: (C,) what is added.
        thresholds: (C,) the probability from which a class is a label.
        images: The held-out images that these were found on.
        mean_average_precision: Of the logits of these images, 0 to 1.
    """

    slopes: tuple[float, ...]
    shifts: tuple[float, ...]
    thresholds: tuple[float, ...]
    images: int
    mean_average_precision: float

    @classmethod
    def found_on(cls, logits: Tensor, label_sets: Tensor, mean_average_precision: float) -> Self:
        """The rule for these held-out images.

        Args:
            logits: (M, C) of a classifier that was not fitted to the images.
            label_sets: (M, C) bool, their labels.
            mean_average_precision: Of these logits.
        """
        found = []
        for scores, truth in zip(logits.double().T.numpy(), label_sets.T.numpy(), strict=True):
            slope, shift = _platt(scores, truth)
            p = 1 / (1 + np.exp(-np.clip(slope * scores + shift, -500, 500)))
            found.append((slope, shift, _best_threshold(p, truth)))
        slopes, shifts, thresholds = zip(*found, strict=True)
        return cls(slopes, shifts, thresholds, len(logits), mean_average_precision)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(M, C) probability of each class by itself, double, of (M, C) logits."""
        slopes, shifts = (torch.tensor(x, dtype=torch.double) for x in (self.slopes, self.shifts))
        return torch.sigmoid(slopes * logits.double() + shifts)

    def labels(self, probabilities: Tensor) -> Tensor:
        """(M, C) True for each label, of (M, C) probabilities."""
        return probabilities >= torch.tensor(self.thresholds, dtype=torch.double)


def _platt(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """The slope and the shift of lowest log-loss under Platt's targets, which are not 0 and 1."""
    from scipy.optimize import minimize

    positive = int(truth.sum())
    target = np.where(truth, (positive + 1) / (positive + 2), 1 / (len(truth) - positive + 2))
    middle, spread = scores.mean(), scores.std() or 1.0
    x = (scores - middle) / spread

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = at[0] * x + at[1]
        error = 1 / (1 + np.exp(-z)) - target
        mean = float((np.logaddexp(0, z) - target * z).mean())
        return mean, np.array([(error * x).mean(), error.mean()])

    # A slope of 0 or below would lose the order of the images.
    found = minimize(loss, [1.0, 0.0], jac=True, bounds=[(1e-3, 1e2), (-1e2, 1e2)])
    slope = float(found.x[0] / spread)
    return slope, float(found.x[1] - slope * middle)


def _best_threshold(p: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The threshold of the highest F1, midway between two probabilities; of equals the highest."""
    order = np.argsort(-p, kind="stable")
    ranked, hits = np.append(p[order], 0.0), np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + truth.sum())
    f1[ranked[:-1] == ranked[1:]] = -1  # no threshold lies between equals
    best = int(f1.argmax())
    return float((ranked[best] + ranked[best + 1]) / 2)
