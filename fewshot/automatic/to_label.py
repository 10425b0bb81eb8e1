"""Choose the unlabeled images to label next: uncertain ones, no two alike.

Doubt is the margin between the two likeliest classes (Scheffer, Decomain and Wrobel, "Active Hidden
Markov Models for Information Extraction", 2001). Variety is the greedy choice of centers, each as
far as can be from those before it (Gonzalez, "Clustering to minimize the maximum intercluster
distance", 1985; for labeling, Sener and Savarese, https://arxiv.org/abs/1708.00489).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class ToLabel:
    """An image worth a label.

    Attributes:
        row: Row of the image.
        predicted: The most probable class.
        runner_up: The second most probable class.
        margin: Probability of `predicted` less that of `runner_up`, in 0..1.
    """

    row: int
    predicted: int
    runner_up: int
    margin: float


SURE = 0.99  # probability from which on a label would teach next to nothing


def to_label(
    features: Tensor, probabilities: Tensor, n: int = 20, *, nearest: Tensor | None = None
) -> tuple[ToLabel, ...]:
    """Return the n images to label, in order.

    The first has the smallest margin; each next one has the largest product of 1 - margin and the
    cosine distance to the nearest image chosen so far. So near-duplicates of a chosen image, at
    distance 0, come last of all, with no threshold to set. An image with a probability of `SURE` or
    more is never chosen.

    Args:
        features: (U, D), any norm.
        probabilities: (U, C), calibrated.
        n: Maximum number of images.
        nearest: (U,) cosine to the nearest image that has a label, which then counts as chosen.
    """
    unit = normalize(features, dim=1)
    top, classes = probabilities.topk(2, dim=1)
    margin = top[:, 0] - top[:, 1]
    distance = torch.ones(len(unit), dtype=unit.dtype)
    if nearest is not None:
        distance = (1 - nearest).clamp(min=0)
    left = top[:, 0] < SURE
    chosen = []
    for _ in range(min(n, int(left.sum()))):
        row = int(((1 - margin) * distance).where(left, -1.0).argmax())
        predicted, runner_up = classes[row].tolist()
        chosen.append(ToLabel(row, predicted, runner_up, float(margin[row])))
        left[row] = False
        distance = torch.minimum(distance, (1 - unit @ unit[row]).clamp(min=0))
    return tuple(chosen)
