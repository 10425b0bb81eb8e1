"""Features in which the classes are round: the covariance within them is the identity."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.parts.gaussian import class_means, shared_covariance
from fewshot.support import SupportSet

SHRINKAGE = 0.5


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
        """Learn the covariance within classes, shrunk by half toward the identity."""
        features, labels = support.samples()
        means = class_means(features, labels, support.n_classes, torch.float64)
        root = torch.linalg.cholesky(shared_covariance(features, labels, means, SHRINKAGE))
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
