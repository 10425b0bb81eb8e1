"""A residual layer on features and a cosine head behind it: trained, and as a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.classifier import require_width
from fewshot.parts.optimizers import SGD


@dataclass(frozen=True, eq=False)
class BottleneckClassifier:
    """Cosines of class weights and of features that a residual layer moved.

    Attributes:
        matrix: (D, D) of the layer.
        shift: (D,) of the layer.
        weight: (C, D), with the logit scale.
        stats: See `Classifier`.
    """

    matrix: Tensor
    shift: Tensor
    weight: Tensor
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "bottleneck"

    def moved(self, features: Tensor) -> Tensor:
        """(M, D) features of unit norm behind the layer."""
        return normalize(features + linear(features, self.matrix, self.shift))

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.weight.shape[1])
        return linear(self.moved(features), self.weight)


class ResidualLayer:
    """The residual layer, and the head where it is trained, under momentum SGD by autograd.

    Args:
        head: (C, D) what the head starts as.
        scale: Of the logits.
        trains_head: True if the head moves as well.
        start: The classifier of which the layer starts; the identity without it.
    """

    def __init__(
        self,
        head: Tensor,
        scale: float,
        *,
        trains_head: bool,
        start: BottleneckClassifier | None = None,
    ) -> None:
        dim = head.shape[1]
        matrix = head.new_zeros(dim, dim) if start is None else start.matrix
        shift = head.new_zeros(dim) if start is None else start.shift
        trained = (matrix, shift, head) if trains_head else (matrix, shift)
        self._optimizer = SGD(*trained, momentum=0.9)
        self._values = [value.detach().requires_grad_() for value in self._optimizer.values]
        self._fixed_head = None if trains_head else head
        self._scale = scale

    def logits(self, features: Tensor) -> Tensor:
        """(B, C) of (B, D) features, for autograd."""
        matrix, shift, weight = self._parts()
        return linear(normalize(features + linear(features, matrix, shift)), weight)

    def step(self, loss: Tensor, lr: float) -> None:
        """Move down the gradient of a loss of `logits`."""
        for into, found in zip(
            self._optimizer.gradients, torch.autograd.grad(loss, self._values), strict=True
        ):
            into.copy_(found)
        self._optimizer.step(lr)

    def classifier(self) -> BottleneckClassifier:
        """Return what the layer is now, as a classifier."""
        matrix, shift, weight = (part.detach().clone() for part in self._parts())
        stats = {"trained_parameters": self._optimizer.count}
        return BottleneckClassifier(matrix, shift, weight, stats)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._fixed_head is not None:
            matrix, shift = self._values
            return matrix, shift, self._fixed_head
        matrix, shift, head = self._values
        return matrix, shift, self._scale * normalize(head)


def averaged(
    old: BottleneckClassifier, new: BottleneckClassifier, share: float
) -> BottleneckClassifier:
    """The old one's numbers by this share, the new one's by the rest."""
    matrix, shift, weight = (
        torch.lerp(getattr(new, name), getattr(old, name), share)
        for name in ("matrix", "shift", "weight")
    )
    return BottleneckClassifier(matrix, shift, weight)
