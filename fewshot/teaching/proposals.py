"""The order in which photos without a label are proposed."""

import torch
from torch import Tensor

from fewshot.automatic.to_label import to_label

EVERY = 3  # of the photos proposed one is drawn at random, for a fair accuracy


def useful(
    features: Tensor, probabilities: Tensor | None, nearest: Tensor | None, n: int
) -> list[int]:
    """Rows of the n photos that would teach most, in order.

    Uncertain ones first, no two alike, and none like a labeled one; see `to_label`. Those of which
    the classifier is sure follow, the lowest probability first.

    Args:
        features: (U, D) of the photos without a label, of unit norm.
        probabilities: (U, C); None where nothing is known yet, and variety alone counts.
        nearest: (U,) cosine of each to the nearest labeled photo; None where there is none.
        n: Maximum number of photos.
    """
    if probabilities is None or probabilities.shape[1] < 2:
        probabilities = torch.full((len(features), 2), 0.5)
    chosen = [one.row for one in to_label(features, probabilities, n, nearest=nearest)]
    confidence = probabilities.amax(dim=1).index_fill(0, torch.tensor(chosen, dtype=torch.int64), 2)
    others = torch.argsort(confidence, stable=True)[: n - len(chosen)]
    return [*chosen, *(row for row in others.tolist() if row not in chosen)]


def random_order(n: int, seed: int) -> list[int]:
    """The photos 0..n-1 in the order of the random draw."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
