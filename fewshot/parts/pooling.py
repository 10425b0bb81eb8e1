"""Weights of a log-linear pool: how much each of several classifiers' logits should count.

Genest and Zidek, "Combining Probability Distributions", Statistical Science 1986. Weights that
minimize the log-loss of held-out images make it stacking: Wolpert, "Stacked generalization", 1992;
Breiman, "Stacked regressions", 1996.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

BLOCK = 2**22  # logits of one classifier worked on at once, 32 MiB in double precision
MAX_STEPS = 50


def pool_weights(
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    prior: Tensor,
    free: Tensor,
    *,
    pull: float,
) -> Tensor:
    """Return the w >= 0 that minimize sum_i CE(sum_b w_b z_bi, y_i) + pull/2 |w - prior|^2.

    The objective is convex. Newton steps are projected onto w >= 0 (Bertsekas, "Projected Newton
    methods for optimization problems with simple constraints", 1982).

    Args:
        logits: (B, M, C) of B classifiers on M held-out images, for each held-out part.
        labels: (M,) of each part.
        prior: (B,) float64 weights at which the pull is zero.
        free: (B,) bool; the other weights keep their prior.
        pull: Strength of the pull toward the prior, in images times nats.
    """
    w = prior.clone()
    value, gradient, curvature = _objective(logits, labels, w, prior, pull)
    for _ in range(MAX_STEPS):
        moving = free & ((w > 0) | (gradient < 0))
        step = torch.zeros_like(w)
        step[moving] = torch.linalg.solve(curvature[moving][:, moving], -gradient[moving])
        slope, scale = float(gradient @ step), 1.0
        if slope > -1e-9 * (1 + value):
            break
        while scale > 1e-8:
            tried = (w + scale * step).clamp_min(0)
            result = _objective(logits, labels, tried, prior, pull)
            if result[0] <= value + 1e-4 * float(gradient @ (tried - w)):
                break
            scale /= 2
        else:
            break
        w, (value, gradient, curvature) = tried, result
    return w


def _objective(
    logits: Sequence[Tensor], labels: Sequence[Tensor], w: Tensor, prior: Tensor, pull: float
) -> tuple[float, Tensor, Tensor]:
    """The objective, its gradient (B,) and its Hessian (B, B)."""
    value = pull / 2 * float((w - prior).square().sum())
    gradient = pull * (w - prior)
    curvature = pull * torch.eye(len(w), dtype=w.dtype)
    for part, truth in zip(logits, labels, strict=True):
        rows = max(1, BLOCK // part.shape[2])
        for z, y in zip(torch.split(part, rows, dim=1), torch.split(truth, rows), strict=True):
            z = z.to(w)
            log_p = torch.log_softmax(torch.tensordot(w, z, 1), dim=1)
            p = log_p.exp()
            value -= float(log_p.gather(1, y[:, None]).sum())
            gradient += ((p - one_hot(y, z.shape[2])) * z).sum(dim=(1, 2))
            expected = (p * z).sum(dim=2)  # (B, M)
            curvature += (p * z).flatten(1) @ z.flatten(1).T - expected @ expected.T
    return value, gradient, curvature
