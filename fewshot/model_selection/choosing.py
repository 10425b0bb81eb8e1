"""Choose among variants by what they got right, and continue beyond the end of a grid."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError
from fewshot.method import AnyMethod, Grid, Method

T = TypeVar("T")
STEPS = 4  # beyond an end of a grid, at most


@dataclass
class VariantScore:
    """How one variant did on labeled images.

    Attributes:
        correct: (M,) bool, true for each image that it classified as labeled.
        loss: Summed log-loss.
    """

    correct: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    loss: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add (M, C) logits of further images with (M,) labels."""
        self.correct = torch.cat([self.correct, (logits.argmax(dim=1) == labels).cpu()])
        self.loss += float(cross_entropy(logits, labels, reduction="sum"))

    @property
    def rank(self) -> tuple[int, float]:
        """Its place among variants: more correct predictions, and of equals a lower log-loss."""
        return int(self.correct.sum()), -self.loss if math.isfinite(self.loss) else -math.inf


def best(scores: Mapping[T, VariantScore], own: T) -> T:
    """Return the most accurate variant if it beats the method's own settings by more than chance.

    All variants classify the same images, so what counts is the images on which two disagree. Of n
    such images, chance alone gives either side a lead of sqrt(n), one standard error (McNemar,
    Psychometrika 12, 1947). A smaller lead changes nothing: the defaults were chosen on far more
    images than a few shots.

    Accuracy in % lost against the best setting of the grid on UCF101's validation split, all
    classes and either half, by cv on 2, 4, 8 and 16 shots of three draws, on average and at most
    (`benchmarks/tuning_rule.py`; the defaults were chosen on this split, and do well there):

                       this rule     most accurate    within one error of it,    defaults
                                                      then the lowest log-loss
        gda            0.50  1.2     0.54  1.1        0.82  1.3                  0.52  0.9
        proker         0.31  1.2     0.79  1.6        0.51  1.7                  0.16  0.4
        ridge          0.57  1.7     1.19  3.3        0.80  1.9                  0.28  0.7
        tip-adapter    1.45  2.2     1.38  2.3        1.81  3.4                  1.22  1.9

    On eleven tasks of five datasets, with the image term of the defaults weighed as `blending`
    does, the averages over these methods were 0.68, 0.90 and 1.04.

    Args:
        scores: By variant, in the grid's order. Of equal ones the first counts.
        own: The method with its own settings, one of the variants.
    """
    most = max(scores, key=lambda variant: scores[variant].rank)
    a, b = scores[most].correct, scores[own].correct
    lead, disagreements = int(a.sum()) - int(b.sum()), int((a != b).sum())
    return most if lead > math.sqrt(disagreements) else own


def continued(
    grid: Grid,
    chosen: AnyMethod,
    score: VariantScore,
    judged: Callable[[Grid], Mapping[AnyMethod, VariantScore]],
) -> AnyMethod:
    """Continue beyond the ends of a grid for as long as that is better by more than chance.

    A field whose chosen value is an end takes one step more, in the ratio of the last two values,
    with every value of the other fields. The step is kept if it beats the choice so far, by `best`.
    At most `STEPS` are taken in a field. Words, whole numbers and what the method does not accept
    are no steps: an axis that ends by nature, at 0 or 1, ends there.

    Args:
        grid: The candidates.
        chosen: The best of them.
        score: Its score.
        judged: Scores every variant of a grid.
    """
    for name in grid:
        for _ in range(STEPS):
            value = _next_step(grid[name], getattr(chosen, name))
            if value is None or not _accepted(chosen, name, value):
                break
            scores = {chosen: score, **judged({**grid, name: (value,)})}
            chosen = best(scores, chosen)
            score = scores[chosen]
            grid = {**grid, name: (*grid[name], value)}  # of which a choice that stood is no end
    return chosen


def _next_step(values: tuple[Any, ...], chosen: Any) -> float | None:
    """The value beyond the chosen one; None where that is no end or nothing can be beyond."""
    if not all(isinstance(value, float) for value in values) or len(set(values)) < 2:
        return None
    ladder = sorted(set(values))
    for end, before in ((ladder[0], ladder[1]), (ladder[-1], ladder[-2])):
        if chosen == end and end > 0 and before > 0:
            return float(f"{end * end / before:.3g}")
    return None


def _accepted(method: Method, name: str, value: float) -> bool:
    """True if the method takes the value."""
    try:
        replace(method, **{name: value})
    except UserError:
        return False
    return True
