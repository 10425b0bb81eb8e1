"""Gaussian discriminants: what classes with one shared covariance make of a feature."""

import torch
from torch import Tensor

from cache.errors import UserError


def directions(means: Tensor, covariance: Tensor) -> Tensor:
    """(C, D) rows P mu_k of (C, D) means, with P the inverse of the (D, D) covariance."""
    return torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T


def offsets(means: Tensor, weight: Tensor) -> Tensor:
    """(C,) constants -mu_k.P mu_k / 2, from means and their `directions`."""
    return -(weight * means).sum(dim=1) / 2


def require_difference(means: Tensor, name: str) -> None:
    """Return if the (C, D) means are not all the same.

    Raises:
        UserError: They are, and nothing tells the classes apart.
    """
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
