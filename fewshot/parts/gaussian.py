"""Gaussian classes of one covariance: their means, the shrunk covariance, the discriminant."""

from typing import Literal, get_args

import torch
from torch import Tensor

from cache.errors import UserError

ShrinkageRule = Literal["published", "ledoit-wolf", "oas"]
Shrinkage = ShrinkageRule | float
SHRINKAGES = get_args(ShrinkageRule)
BLOCK = 2**16  # samples at a time, 256 MiB of them in double precision at 512 dimensions

ROUNDING = 1e-9  # the variance of unit vectors that are one and the same


def alike(samples: Tensor) -> bool:
    """True if (N, D) samples of unit norm, two or more, differ by rounding alone."""
    return bool(samples.double().var(dim=0).sum() < ROUNDING)


def class_means(
    features: Tensor, labels: Tensor, n_classes: int, dtype: torch.dtype | None = None
) -> Tensor:
    """(C, D) means of (N, D) features by (N,) labels, in the features' type or another."""
    sums = torch.zeros(
        n_classes, features.shape[1], dtype=dtype or features.dtype, device=features.device
    )
    for x, y in zip(torch.split(features, BLOCK), torch.split(labels, BLOCK), strict=True):
        sums.index_add_(0, y, x.to(sums))
    return sums / torch.bincount(labels, minlength=n_classes)[:, None]


def shared_covariance(
    features: Tensor, labels: Tensor, means: Tensor, shrinkage: Shrinkage
) -> Tensor:
    """(D, D) covariance within the classes, shrunk: (1 - s) S + s tr(S)/D I.

    S pools the residuals of all classes, with divisor N - 1. Where every sample is its class's
    only one, S is zero and says nothing of any direction: the variance of all samples about their
    common mean, spread evenly, then stands in for it, so that a class is a ball about its mean.

    Args:
        features: (N, D), of any type; all is computed in the means'.
        labels: (N,).
        means: (C, D) the classes' means.
        shrinkage: s itself, or how to choose it; see `shrinkage_intensity`.

    Raises:
        UserError: All samples are alike.
    """
    n, dim = features.shape
    scatter = torch.zeros(dim, dim, dtype=means.dtype, device=means.device)
    for x, y in zip(torch.split(features, BLOCK), torch.split(labels, BLOCK), strict=True):
        residuals = x.to(means) - means[y]
        scatter += residuals.T @ residuals
    scatter /= n - 1
    identity = torch.eye(dim, dtype=means.dtype, device=means.device)
    variance = scatter.trace() / dim
    if variance * dim < ROUNDING:
        if alike(features):
            raise UserError(
                f"{n} labeled samples are all one and the same, and tell no classes apart; "
                "look for one image under all labels"
            )
        return features.to(means).var(dim=0).mean() * identity
    if shrinkage in ("ledoit-wolf", "oas"):  # these two want all residuals at once
        intensity = shrinkage_intensity(features.to(means) - means[labels], shrinkage)
    else:
        intensity = shrinkage_intensity(features, shrinkage)
    return (1 - intensity) * scatter + intensity * variance * identity


def shrinkage_intensity(residuals: Tensor, shrinkage: Shrinkage) -> float:
    """The s in [0, 1] for (N, D) residuals from the class means, of which two rules need but N, D.

    `published` is GDA's: its precision D [(N-1) S + tr(S) I]^-1 is, up to a factor s, the inverse
    of (1-s) S + s tr(S)/D I with s = D / (D + N - 1). `ledoit-wolf` (Ledoit and Wolf, 2004) and
    `oas` (Chen et al., 2010, arXiv:0907.4698) estimate the s of minimum squared error from the
    residuals. A number is taken as it is.
    """
    if isinstance(shrinkage, float | int):
        return float(shrinkage)
    n, dim = residuals.shape
    if shrinkage == "published":
        return dim / (dim + n - 1)
    from sklearn import covariance  # a second to import, and only these two choices need it

    array = residuals.cpu().numpy()
    if shrinkage == "oas":
        return float(covariance.oas(array, assume_centered=True)[1])
    return float(covariance.ledoit_wolf_shrinkage(array, assume_centered=True))


def soft_covariance(
    features: Tensor, shares: Tensor, means: Tensor, shrinkage: Literal["published"] | float
) -> Tensor:
    """(D, D) mean over the classes of sum_i w_ik (x_i - mu_k)(x_i - mu_k)', shrunk.

    Where classes are not known but probable. Shrunk as in `shared_covariance`.

    Args:
        features: (N, D).
        shares: (N, C) weights w, which sum to about one over the images of each class.
        means: (C, D).
        shrinkage: The intensity, or GDA's rule for N samples.
    """
    n, dim = features.shape
    sums = shares.T @ features  # (C, D)
    cross = sums.T @ means
    scatter = (features * shares.sum(dim=1)[:, None]).T @ features - cross - cross.T
    scatter = (scatter + means.T @ (means * shares.sum(dim=0)[:, None])) / len(means)
    intensity = dim / (dim + n - 1) if shrinkage == "published" else float(shrinkage)
    identity = torch.eye(dim, dtype=features.dtype, device=features.device)
    return (1 - intensity) * scatter + intensity * scatter.trace() / dim * identity


def directions(means: Tensor, covariance: Tensor) -> Tensor:
    """(C, D) rows P mu_k of (C, D) means, with P the inverse of the (D, D) covariance."""
    return torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T


def offsets(means: Tensor, weight: Tensor) -> Tensor:
    """(C,) constants -mu_k.P mu_k / 2, from means and their `directions`."""
    return -(weight * means).sum(dim=1) / 2


def require_difference(means: Tensor, name: str) -> None:
    """Raise UserError if the (C, D) means are all the same, and nothing tells the classes apart."""
    if (means - means.mean(dim=0)).norm() < 1e-6:
        raise UserError(
            f"{name} needs class means that differ; every class of the support set has the same; "
            "look for one image under all labels, or features that are all alike"
        )


def lead(means: Tensor, weight: Tensor) -> float:
    """How far the term puts a class ahead of the average class, in nats, averaged over classes.

    At its mean, mu_k leads the average class by |mu_k - mu|^2 / 2 and a constant; the averages of
    both over k are equal, so the average lead is that of |mu_k - mu|^2, all in P's norm.

    Args:
        means: (C, D), not all the same.
        weight: (C, D) their `directions`.
    """
    return float((weight * (means - means.mean(dim=0))).sum(dim=1).mean())
