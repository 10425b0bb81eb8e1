"""Gaussians about means of unit norm with one diagonal variance, of soft and of labeled images."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.support import SupportSet

CONFIDENT = 8  # images of a class that its first mean is taken of, without labeled ones
MIN_VARIANCE = 1e-9  # of a dimension in which the images of a class do not differ at all


@dataclass(frozen=True, eq=False)
class LabeledSums:
    """Sums over the labeled images, all zero without any.

    Attributes:
        sums: (C, D) of the images of each class.
        squares: (D,) of their squares.
        counts: (C,) of them.
        each: Weight of an image, where all unlabeled images together weigh 1.
    """

    sums: Tensor
    squares: Tensor
    counts: Tensor
    each: float

    @classmethod
    def of(cls, support: SupportSet | None, each: float) -> Self:
        """The sums over a support set."""
        if support is None:
            nothing = torch.zeros(1, 1)
            return cls(nothing, nothing[0], nothing[0], each)
        x = support.features
        sums = x.new_zeros(support.n_classes, x.shape[1]).index_add_(0, support.labels, x)
        return cls(sums, (x**2).sum(dim=0), support.counts.to(x), each)


def means_of_the_surest(x: Tensor, y: Tensor) -> Tensor:
    """(C, D) means of unit norm of the (M, D) images surest of each class by the (M, C) shares y.

    They are weighted by how sure.
    """
    shares, rows = y.topk(min(CONFIDENT, len(x)), dim=0)  # (8, C)
    return normalize(torch.einsum("nc,ncd->cd", shares / shares.sum(dim=0), x[rows]), dim=1)


def log_density(x: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """(M, C) -|x - mu|^2_s / 2 of (M, D) images, less what all classes share.

    Args:
        x: (M, D).
        means: (C, D).
        variance: (D,).
    """
    return linear(x, means / variance, -(means**2 / variance).sum(dim=1) / 2)


def estimate(x: Tensor, z: Tensor, labeled: LabeledSums) -> tuple[Tensor, Tensor]:
    """Means (C, D) of unit norm and the variance (D,) about them; no class's mean is zero.

    Args:
        x: (M, D) unlabeled images.
        z: (M, C) their assignments.
        labeled: The labeled images.
    """
    sums = z.T @ x / len(x) + labeled.each * labeled.sums
    shares = z.sum(dim=0) / len(x) + labeled.each * labeled.counts
    averages = sums / shares.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
    means = normalize(averages, dim=1)
    # sum_ik z_ik (x_i - mu_k)^2, multiplied out, of all images together.
    squares = (x**2).mean(dim=0) + labeled.each * labeled.squares
    spread = squares - 2 * (sums * means).sum(dim=0) + shares @ means**2
    return means, (spread / shares.sum()).clamp_min(MIN_VARIANCE)
