"""UEO's objective: entropy of sure images, less that of the average of the unsure ones."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Weighting = Literal["zero-shot", "none"]
FLOOR = 1e-5  # added to a probability before its logarithm, as in the authors' code


class Objective(NamedTuple):
    """The loss of a batch, and its gradient.

    Attributes:
        loss: Scalar.
        gradient: (B, C), with respect to the logits.
    """

    loss: Tensor
    gradient: Tensor


def objective(logits: Tensor, weights: Tensor, marginal: float = 1.0) -> Objective:
    """Weighted entropy of the images less the entropy of their average.

        L = sum_i w_i H(p_i) / sum_i w_i - marginal H(q),   q = sum_i p_i / w_i / sum_i 1 / w_i.

    Args:
        logits: (B, C).
        weights: (B,) above 0: how sure zero-shot CLIP is of each image.
        marginal: Weight of the average's entropy.
    """
    p = torch.softmax(logits, dim=1)
    sure, unsure = weights / weights.sum(), (1 / weights) / (1 / weights).sum()
    q = unsure @ p
    loss = sure @ _entropy(p) - marginal * _entropy(q)
    toward = sure[:, None] * _slope(p) - marginal * unsure[:, None] * _slope(q)
    return Objective(loss, p * (toward - (p * toward).sum(dim=1, keepdim=True)))


def image_weights(
    images: Tensor,
    text: Tensor,
    weighting: Weighting,
    temperature: float | Literal["model"],
    logit_scale: float,
) -> Tensor:
    """(U,) how sure zero-shot CLIP is of each image, above 0; or ones.

    Args:
        images: (U, D) of unit norm.
        text: (C, D) of unit norm.
        weighting: By that certainty, or `none`.
        temperature: Temperature of the softmax; `model` is the inverse of the logit scale.
        logit_scale: CLIP's inverse temperature.
    """
    if weighting == "none":
        return images.new_ones(len(images))
    scale = logit_scale if temperature == "model" else 1 / temperature
    return torch.softmax(scale * images @ text.T, dim=1).amax(dim=1)


def _entropy(p: Tensor) -> Tensor:
    """Entropy along the last axis, in nats."""
    return -(p * (p + FLOOR).log()).sum(dim=-1)


def _slope(p: Tensor) -> Tensor:
    """Derivative of the entropy with respect to each probability."""
    return -((p + FLOOR).log() + p / (p + FLOOR))
