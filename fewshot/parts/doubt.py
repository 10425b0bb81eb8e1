"""How much the class names leave open, read from zero-shot CLIP's own log-loss on the support set.

That costs no label: zero-shot CLIP has not seen these, so its log-loss on them is honest.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fewshot.support import SupportSet, spread

JUDGED = 20_000  # images that say it, at most: by then the mean log-loss is sure to 1 % of log C
LOGITS = 2**24  # zero-shot's, 64 MiB at a time


def doubt(support: SupportSet, zero_shot: Tensor) -> float:
    """Zero-shot's mean log-loss on the support set as a fraction of log C; 0 to 1.

    Of a large support set, on `JUDGED` images of it.

    Args:
        support: N labeled images at unit norm.
        zero_shot: (C, D) class texts at unit norm times CLIP's inverse temperature.
    """
    rows = spread(len(support.labels), JUDGED)
    loss = 0.0
    for part in torch.split(rows, max(1, LOGITS // support.n_classes)):
        logits = linear(support.features[part], zero_shot)
        loss += float(cross_entropy(logits, support.labels[part], reduction="sum"))
    return min(1.0, loss / len(rows) / math.log(support.n_classes))


def trust(doubt: float, shots: int, full_doubt: float) -> float:
    """How far K labeled images per class are trusted, 0 to 1: min(1, sqrt(K) (doubt / full)^2).

    Args:
        doubt: Zero-shot's; see above.
        shots: K.
        full_doubt: The doubt at which one image is trusted in full.
    """
    return min(1.0, math.sqrt(shots) * (doubt / full_doubt) ** 2)
