"""Classifiers whose last projection of images was trained, by pooled images or by features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.classifier import require_width


@dataclass(frozen=True, eq=False)
class PooledClassifier:
    """Cosines of text and of features that the image tower's last layers make of pooled images.

    Attributes:
        scale: (w,) of the last layer norm.
        shift: (w,) of it.
        projection: (w, D).
        weight: (C, D) text, with the logit scale.
        stats: See `Classifier`.
    """

    scale: Tensor
    shift: Tensor
    projection: Tensor
    weight: Tensor
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "pooled"

    def features(self, pooled: Tensor) -> Tensor:
        """(M, D) features, of any norm, of (M, w) pooled images."""
        return (self.scale * pooled + self.shift) @ self.projection

    def logits(self, pooled: Tensor) -> Tensor:
        """(M, C) logits of (M, w) pooled images."""
        return normalize(self.features(pooled)) @ self.weight.T


@dataclass(frozen=True, eq=False)
class ProjectedClassifier:
    """Cosines of the class texts to features that a matrix has moved.

    Attributes:
        projection: (D, D).
        weight: (C, D) unit texts times the logit scale.
        stats: See `Classifier`.
    """

    projection: Tensor
    weight: Tensor
    stats: Mapping[str, float]

    kind: ClassVar[str] = "projected"

    def features(self, features: Tensor) -> Tensor:
        """(M, D) moved features, of any norm, of (M, D) features."""
        return features @ self.projection

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.weight.shape[1])
        return linear(normalize(self.features(features), dim=1), self.weight)
