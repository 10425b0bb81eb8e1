"""How well images of several labels are classified, all in 0..1."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot.metrics import ClassMetrics


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """The area under the steps of precision against recall of one class; NaN without its images.

    Equal scores count as one step, as in scikit-learn's `average_precision_score`.

    Args:
        scores: (M,) the higher the likelier.
        truth: (M,) bool.
    """
    if not truth.any():
        return math.nan
    ranked, order = scores.sort(descending=True)
    last = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])
    hits = truth[order].double().cumsum(0)[last]
    precision = hits / torch.arange(1, len(scores) + 1).double()[last]
    return float((hits.diff(prepend=hits.new_zeros(1)) * precision).sum() / hits[-1])


def average_precisions(scores: Tensor, label_sets: Tensor) -> list[float]:
    """C average precisions of (M, C) scores and labels."""
    return [average_precision(s, y) for s, y in zip(scores.T, label_sets.T, strict=True)]


def mean_known(values: Sequence[float]) -> float:
    """The mean of the values that are no NaN, such as those of classes without an image."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known)


def precision_recall_f1(
    predicted: Tensor, label_sets: Tensor
) -> tuple[list[float], list[float], list[float]]:
    """C precisions, recalls and F1s of (M, C) predicted labels; 0 where nothing is predicted.

    Recall and F1 are NaN for a class without an image.
    """
    counts = [part.sum(dim=0).tolist() for part in (label_sets, predicted, predicted & label_sets)]
    metrics = [ClassMetrics(*of_class) for of_class in zip(*counts, strict=True)]
    return (
        [one.precision or 0.0 for one in metrics],
        [math.nan if one.recall is None else one.recall for one in metrics],
        [math.nan if one.f1 is None else one.f1 for one in metrics],
    )


def micro_f1(predicted: Tensor, label_sets: Tensor) -> float:
    """F1 of all labels of all images together; 0 where there is none."""
    hits = float((predicted & label_sets).sum())
    total = float(predicted.sum() + label_sets.sum())
    return 2 * hits / total if total else 0.0
