"""Small tasks out of random numbers, for whatever needs a support set, class texts and queries."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.support import SupportSet
from fewshot.text import Text


def vectors(seed: int, *shape: int) -> Tensor:
    """Random directions: float32 of that shape, unit norm along the last axis."""
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def in_turn(n_classes: int, shots: int, left_out: int = 0) -> Tensor:
    """(N,) labels 0, 1, 2 ... in turn; the last `left_out` classes have an image less each."""
    labels = torch.arange(n_classes).repeat(shots)
    return labels[: len(labels) - left_out]


def support_near(
    centers: Tensor, labels: Tensor, *, n_views: int = 0, noise: float = 1.0
) -> SupportSet:
    """Images scattered about their classes' (C, D) centers, and V views scattered about them.

    Args:
        centers: One direction per class.
        labels: (N,) the class of each image.
        n_views: V; without any, the support set has no views.
        noise: How far an image lies from its center; at 0 it is the center.
    """
    n, dim = len(labels), centers.shape[1]
    features = normalize(centers[labels] + noise * vectors(1, n, dim))
    views = normalize(features + 0.3 * vectors(2, n_views, n, dim), dim=-1)
    return SupportSet(features, labels, len(centers), views if n_views else None)


def task(
    n_classes: int,
    *,
    shots: int = 4,
    dim: int = 12,
    n_views: int = 0,
    left_out: int = 0,
    noise: float = 1.0,
) -> tuple[SupportSet, Text, Tensor]:
    """A support set and texts about the same centers, and 40 queries about none of them."""
    centers = vectors(0, n_classes, dim)
    support = support_near(
        centers, in_turn(n_classes, shots, left_out), n_views=n_views, noise=noise
    )
    return support, Text(normalize(centers + vectors(3, n_classes, dim))), vectors(4, 40, dim)
