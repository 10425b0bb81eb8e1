"""SHOT's pseudo-labels of unlabeled images, and the loss by which two-stage adapts to them."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

PseudoLabels = Literal["centroids", "argmax"]
MIDDLE, SPREAD = 0.5, 0.2  # the certainty that divides known from unknown, and its margin at last


def known_and_unknown(certain: Tensor, step: int, steps: int) -> tuple[Tensor, Tensor]:
    """(B,) masks of images more certain than most, and of those less certain, by a growing margin.

    Args:
        certain: (B,) certainties, from 0 to 1.
        step: The step, from 0.
        steps: The number of steps.
    """
    margin = SPREAD * step / steps
    return certain > MIDDLE + margin, certain < MIDDLE - margin


def adaptation_loss(
    logits: Tensor, pseudo: Tensor, known: Tensor, unknown: Tensor, push: float
) -> Tensor:
    """Cross-entropy of the known images less `push` times the mean entropy of the unknown ones.

    Args:
        logits: (B, C).
        pseudo: (B,) pseudo-labels.
        known: (B,) mask.
        unknown: (B,) mask.
        push: Weight of the entropy.
    """
    loss = logits.sum() * 0
    if known.any():
        loss = loss + cross_entropy(logits[known], pseudo[known])
    if unknown.any():
        p = torch.softmax(logits[unknown], dim=1)
        loss = loss + push * (p * p.clamp_min(1e-12).log()).sum(dim=1).mean()
    return loss


def centroid_labels(features: Tensor, probabilities: Tensor) -> Tensor:
    """(U,) the nearest of the classes' centroids, found twice, as SHOT's pseudo-labels are.

    First centroids are weighted by the probabilities, then by the labels that these give. Features
    have a 1 appended and unit norm.

    Args:
        features: (U, D).
        probabilities: (U, C).
    """
    x = normalize(torch.cat([features, features.new_ones(len(features), 1)], dim=1))
    first = (x @ normalize(probabilities.T @ x).T).argmax(dim=1)
    shares = one_hot(first, probabilities.shape[1]).to(x)
    return (x @ normalize(shares.T @ x).T).argmax(dim=1)
