"""Plans of optimal transport, number by number."""

import math

import torch
from torch import Tensor


def naive_plans(cosines: Tensor) -> list[Tensor]:
    """One for each of (C, M, N), number by number, as the authors' loop has it for one image."""
    n_classes, n_parts, n_prompts = cosines.shape
    kernel = [[[math.exp(-(1 - float(x)) / 0.1) for x in row] for row in one] for one in cosines]
    r = [[1.0] * n_parts for _ in range(n_classes)]
    c = [[1.0] * n_prompts for _ in range(n_classes)]
    for _ in range(100):
        change = 0.0
        for k in range(n_classes):
            for m in range(n_parts):
                new = 1 / n_parts / sum(kernel[k][m][n] * c[k][n] for n in range(n_prompts))
                change += abs(new - r[k][m]) / (n_classes * n_parts)
                r[k][m] = new
            for n in range(n_prompts):
                c[k][n] = 1 / n_prompts / sum(kernel[k][m][n] * r[k][m] for m in range(n_parts))
        if change < 0.01:
            break
    return [
        torch.tensor(
            [
                [r[k][m] * kernel[k][m][n] * c[k][n] for n in range(n_prompts)]
                for m in range(n_parts)
            ]
        )
        for k in range(n_classes)
    ]
