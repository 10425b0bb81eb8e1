"""GDA for classes without images: their statistics, from images of others near the class's text.

An appendix of `fewshot.methods.gda`, which alone uses it, by section "base-to-new generalization"
of the paper, https://arxiv.org/abs/2402.04087.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.parts.neighbors import nearest

TEXT_COPIES = 16  # of a class's text among its neighbors, as in the authors' code


@dataclass(frozen=True, eq=False)
class NeighborStats:
    """Statistics of C' classes, of the images nearest their text.

    Attributes:
        means: (C', D) of each class's neighbors and `TEXT_COPIES` of its text.
        deviations: (C', k, D) of the neighbors from the text, which stands for the mean.
    """

    means: Tensor
    deviations: Tensor


def stats_from_neighbors(samples: Tensor, text: Tensor, n_neighbors: int) -> NeighborStats:
    """Take the statistics of the samples of the largest cosine with each class's text.

    Args:
        samples: (N, D), unit norm, of other classes.
        text: (C', D), unit norm.
        n_neighbors: k; all samples where there are fewer.
    """
    rows = nearest(text, samples, n_neighbors)[1]
    found = samples[rows]  # (C', k, D)
    total = found.sum(dim=1) + TEXT_COPIES * text
    return NeighborStats(total / (rows.shape[1] + TEXT_COPIES), found - text[:, None])


def mean_precision(deviations: Tensor) -> Tensor:
    """(D, D) mean over the classes of each one's shrunk precision D [R'R + tr(R'R)/(k-1) I]^-1.

    That is the authors' estimate, of which R'R is k - 1 times the covariance about the text.
    Their code has 512 where D belongs. By Woodbury's identity, with t for the trace term,
    [R'R + t I]^-1 = (I - R'(RR' + t I)^-1 R) / t: k equations a class instead of D.

    Args:
        deviations: (C', k, D) the R of each class, of k >= 2 rows.
    """
    n_classes, k, dim = deviations.shape
    gram = deviations @ deviations.mT  # (C', k, k)
    ridge = gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] / (k - 1)
    identity = torch.eye(k, dtype=gram.dtype, device=gram.device)
    solved = torch.linalg.solve(gram + ridge * identity, deviations) / ridge
    subtracted = deviations.flatten(0, 1).T @ solved.flatten(0, 1) / n_classes
    identity = torch.eye(dim, dtype=gram.dtype, device=gram.device)
    precision: Tensor = dim * ((1 / ridge).mean() * identity - subtracted)
    return precision
