"""APE's channels: those of a feature that tell the classes apart, and features on them."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def on_channels(features: Tensor, channels: Tensor | None) -> Tensor:
    """(..., Q) features on some channels at unit norm; as they are where all channels count."""
    return features if channels is None else normalize(features[..., channels], dim=-1)


def best_channels(
    text: Tensor, samples: Tensor, labels: Tensor, share: float, balance: float
) -> Tensor:
    """(Q,) the channels, best first, of highest J = balance Var - (1 - balance) S.

    S_d is the mean of x_d x'_d over pairs of samples of different classes: with s_c the sum of
    class c's samples and n_c their number, (|sum s|^2 - sum s^2) / ((sum n)^2 - sum n^2). Var_d is
    the variance of the class texts.

    Args:
        text: (C, D) class text features.
        samples: (S, D) whose dissimilarity counts, of unit norm.
        labels: (S,) their classes.
        share: Q / D.
        balance: Weight of the variance.
    """
    n_classes, dim = text.shape
    x = samples.double()
    sums = x.new_zeros(n_classes, dim).index_add_(0, labels, x)
    counts = torch.bincount(labels, minlength=n_classes).double()
    pairs = counts.sum() ** 2 - counts.square().sum()
    similarity = (sums.sum(dim=0).square() - sums.square().sum(dim=0)) / pairs
    criterion = balance * text.double().var(dim=0) - (1 - balance) * similarity
    return criterion.topk(max(1, round(share * dim))).indices
