"""Probabilities that mean what they say: one temperature for all logits, and how far off they are.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

LARGEST = math.log(1e4)  # of the temperature's logarithm, either way


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T under which softmax(logits / T) has the least log-loss on these images.

    As though one image more had been seen, of a class drawn at random: where every prediction is
    right the log-loss alone would have T fall to 0, and a hundred right ones are no certainty.

    Args:
        logits: (M, C) of images that the classifier was not fitted to.
        labels: (M,) class ids.

    Returns:
        T > 0; 1 where there are no images.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    z = logits.double()
    of_label = z.gather(1, labels[:, None])[:, 0].mean()
    average = z.mean()

    def loss(log_t: float) -> float:
        # Mean of log-sum-exp less the logit of the label, that image of a random class included.
        inverse = math.exp(-log_t)
        total = torch.logsumexp(inverse * z, dim=1).mean()
        seen, drawn = total - inverse * of_label, total - inverse * average
        return float(seen + drawn / len(labels))

    found = minimize_scalar(loss, bounds=(-LARGEST, LARGEST), method="bounded")
    return math.exp(float(found.x))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy, from 0 to 1: the mean over bins of equal width.

    Args:
        probabilities: (M, C).
        labels: (M,) class ids.
        bins: How many.
    """
    if not len(labels):
        return 0.0
    confidence, predicted = probabilities.double().max(dim=1)
    gap = (predicted == labels).double() - confidence
    at = (confidence * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins).double().index_add_(0, at, gap).abs().sum() / len(labels))


def log_loss(logits: Tensor, labels: Tensor, t: float = 1.0) -> float:
    """Mean -log p of the labels under softmax(logits / T)."""
    return float(cross_entropy(logits.double() / t, labels))
