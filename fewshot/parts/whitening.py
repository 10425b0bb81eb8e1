"""Features in which the classes are about round: their covariance is near the identity."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.parts.gaussian import class_means, shared_covariance
from fewshot.support import SupportSet

OF_ALL = 0.25  # share of the covariance of all samples; how much hardly matters, 0.1 to 0.5
IDENTITY = 0.5


@dataclass(frozen=True, eq=False)
class Whitening:
    """The map from a feature x to the unit vector along A (x - mean), with A'A the precision.

    Attributes:
        matrix: (D, D) float32 A.
        center: (D,) float32 mean of the samples it was learned from.
    """

    matrix: Tensor
    center: Tensor

    kind: ClassVar[str] = "whitening"

    @classmethod
    def of(cls, support: SupportSet) -> Self:
        """Learn the covariance: a quarter within classes, a quarter of all, half the identity.

        All three at one trace. Features vary within classes much as they vary at all, and of K
        images per class only K - 1 show the former: at one shot none.
        """
        features, labels = support.samples()
        means = class_means(features, labels, support.n_classes, torch.float64)
        intensity = IDENTITY / (1 - OF_ALL)
        within = shared_covariance(features, labels, means, intensity)
        centered = features.to(means) - features.to(means).mean(dim=0)
        total = centered.T @ centered
        total *= within.trace() / total.trace()
        root = torch.linalg.cholesky((1 - OF_ALL) * within + OF_ALL * total)
        identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
        matrix = torch.linalg.solve_triangular(root, identity, upper=False)
        return cls(matrix.to(features), features.mean(dim=0))

    def __call__(self, features: Tensor) -> Tensor:
        """(..., D) whitened features of (..., D) features."""
        return normalize((features - self.center) @ self.matrix.T, dim=-1)

    def support(self, support: SupportSet) -> SupportSet:
        """Whiten the images of a support set, and their views."""
        views = None if support.views is None else self(support.views)
        # An image at the mean has no direction, so norms are not checked again.
        return replace(support, features=self(support.features), views=views, unit_norm=False)
