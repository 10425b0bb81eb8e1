"""Mistakes, label issues, near-duplicates and the learning curve of the winner."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.automatic.confusions import ConfusedPair, confused_pairs
from fewshot.automatic.judging import CrossValidation
from fewshot.automatic.label_issues import LabelIssue, find_label_issues
from fewshot.method import Method
from fewshot.metrics import ClassMetrics, class_metrics
from fewshot.model_selection.learning_curve import LearningCurve, learning_curve
from fewshot.model_selection.near_duplicates import Conflict, conflicts, near_duplicates
from fewshot.support import SupportSet
from fewshot.text import Text

EXAMPLES = 3  # photos of each kind of mistake


@dataclass(frozen=True)
class Diagnostics:
    """Findings from the out-of-fold predictions; without a winner, near-duplicates alone.

    Attributes:
        class_metrics: C, recall, precision and F1 of each class.
        pairs: The classes most often confused.
        label_issues: Images whose label is probably wrong.
        duplicates: Rows of each group of near-duplicates, the largest group first.
        conflicts: Those groups that have more than one label.
        curve: Accuracy against labeled images; None for a method that uses no labels.
    """

    class_metrics: tuple[ClassMetrics, ...]
    pairs: tuple[ConfusedPair, ...]
    label_issues: tuple[LabelIssue, ...]
    duplicates: tuple[tuple[int, ...], ...]
    conflicts: tuple[Conflict, ...]
    curve: LearningCurve | None


def diagnose(
    validation: CrossValidation,
    method: Method,
    temperature: float,
    support: SupportSet,
    text: Text | None,
    *,
    seed: int = 1,
) -> Diagnostics:
    """Find confused classes, label issues, near-duplicates and the learning curve.

    Args:
        validation: The methods' cross-validation.
        method: The winner, with its hyper-parameters as tuned.
        temperature: T of its probabilities, softmax(logits / T).
        support: All labeled images in the form that it needs.
        text: The classes' text by the method's recipe.
        seed: Random seed for the learning curve's draws.
    """
    labels, winner = validation.labels, validation.winner
    groups = near_duplicates(support.features)
    conflicting = conflicts(groups, labels)
    nobody = torch.zeros(len(labels), dtype=torch.bool)
    seen = nobody if winner is None else winner.judged
    p = torch.full((len(labels), support.n_classes), torch.nan)
    if winner is not None:
        p = winner.probabilities(temperature)
    curve = None
    if winner is not None and method.takes_support():
        curve = learning_curve(method, support, text, validation.fold, seed=seed)
    return Diagnostics(
        class_metrics=class_metrics(p[seen].argmax(dim=1), labels[seen], p.shape[1]),
        pairs=confused_pairs(p, labels, seen, examples=EXAMPLES),
        label_issues=find_label_issues(p, labels, seen, conflicting),
        duplicates=repeated(groups),
        conflicts=conflicting,
        curve=curve,
    )


def repeated(groups: Tensor) -> tuple[tuple[int, ...], ...]:
    """The rows of every one of (N,) groups that has more than one image, the largest first."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    several = [tuple(rows) for rows in members.values() if len(rows) > 1]
    return tuple(sorted(several, key=lambda rows: -len(rows)))
