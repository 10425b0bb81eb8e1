"""The Hessian of a softmax regression, near enough to solve with: one block for each class."""

import torch
from torch import Tensor

# Rows of a class that are more than a part of its diagonal. On 1,616 images of UCF101 a cold C of
# 30, 300 and 3000 takes 86, 143 and 229 passes without any, 52, 90 and 122 with 8, 45, 68 and 91
# with 16; 32 save a seventh of these and cost more than they save.
HEAVY = 16
ROOM = 2**26  # numbers in the heavy rows of all classes
LEAST = 1e-2  # what stays of the diagonal without them, where they are all there is


class ClassBlocks:
    """Solves with H = diag(d) + U_c' U_c in each class c, by Woodbury's identity.

    Near an optimum most rows are certain, and the curvature in a class comes from the few that are
    not: these are the rows of U_c, and d is the rest of the diagonal.
    """

    def __init__(self, diagonal: Tensor, heavy: Tensor) -> None:
        """From the whole diagonal (R, C) and scaled rows (C, K, R), of which K may be 0."""
        rest = torch.maximum(diagonal.T - heavy.square().sum(dim=1), LEAST * diagonal.T)
        self.scale = rest.rsqrt_()
        scaled = heavy * self.scale[:, None]
        inner = scaled @ scaled.mT
        inner.diagonal(dim1=1, dim2=2).add_(1)
        root = torch.linalg.cholesky(inner)
        self.rows = torch.linalg.solve_triangular(root, scaled, upper=False)

    def solve(self, residual: Tensor) -> Tensor:
        """H's inverse times (R, C) residuals."""
        scaled = (residual.T * self.scale)[..., None]
        scaled = scaled - self.rows.mT @ (self.rows @ scaled)
        solved: Tensor = scaled[..., 0] * self.scale
        return solved.T.contiguous()


def heaviest(known: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The samples of most weight in each class, times its root: (C, K, R).

    Args:
        known: (C, K', R) those among other samples.
        rows: (N, R) samples, whose last feature is 1.
        weights: (N, C) the weight of each in each class, p (1 - p).
    """
    room = min(HEAVY, ROOM // (weights.shape[1] * rows.shape[1]))
    top, which = weights.topk(min(room, len(rows)), dim=0)
    found = torch.cat([known, rows[which.T] * top.T.sqrt()[..., None]], dim=1)
    if found.shape[1] <= room:
        return found
    chosen = found[..., -1].topk(room, dim=1).indices
    return found.gather(1, chosen[..., None].expand(-1, -1, rows.shape[1]))
