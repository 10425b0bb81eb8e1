"""What the winner's out-of-fold answers say of the photos and of their labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.automatic.confusions import ClassFigures, Pair, class_figures, confused_pairs
from fewshot.automatic.judging import Judged
from fewshot.automatic.mislabeled import Suspect, mislabeled
from fewshot.classifier import Method
from fewshot.model_selection.learning_curve import LearningCurve, learning_curve
from fewshot.model_selection.near_duplicates import Conflict, conflicts, near_duplicates
from fewshot.support import SupportSet
from fewshot.text import Text

EXAMPLES = 3  # photos of each kind of mistake


@dataclass(frozen=True)
class Findings:
    """What was found; without a winner only what the photos themselves say.

    Attributes:
        figures: How each class fared.
        pairs: The classes most often confused.
        suspects: Images whose label is likely wrong.
        duplicates: Rows of each group of near-duplicates, the largest group first.
        conflicts: Those groups that have more than one label.
        curve: Accuracy against labels; None of a method that learns nothing from them.
    """

    figures: tuple[ClassFigures, ...]
    pairs: tuple[Pair, ...]
    suspects: tuple[Suspect, ...]
    duplicates: tuple[tuple[int, ...], ...]
    conflicts: tuple[Conflict, ...]
    curve: LearningCurve | None


def examine(
    judged: Judged,
    method: Method,
    temperature: float,
    support: SupportSet,
    text: Text | None,
    *,
    seed: int = 1,
) -> Findings:
    """Look at mistakes, labels, near-duplicates, and what more labels would bring.

    Args:
        judged: What became of the methods.
        method: The winner, with its hyper-parameters as tuned.
        temperature: T of its probabilities, softmax(logits / T).
        support: All labeled images in the form that it wants.
        text: The classes' text by its recipe.
        seed: Of the learning curve's orders.
    """
    labels, winner = judged.labels, judged.winner
    twins = near_duplicates(support.features)
    twice = conflicts(twins, labels)
    nobody = torch.zeros(len(labels), dtype=torch.bool)
    seen = nobody if winner is None else winner.judged
    p = torch.full((len(labels), support.n_classes), torch.nan)
    if winner is not None:
        p = winner.probabilities(temperature)
    curve = None
    if winner is not None and method.learns_from != "text":
        curve = learning_curve(method, support, text, judged.fold, seed=seed)
    return Findings(
        figures=class_figures(p, labels, seen),
        pairs=confused_pairs(p, labels, seen, examples=EXAMPLES),
        suspects=mislabeled(p, labels, seen, twice),
        duplicates=repeated(twins),
        conflicts=twice,
        curve=curve,
    )


def repeated(groups: Tensor) -> tuple[tuple[int, ...], ...]:
    """The rows of every one of (N,) groups that has more than one image, the largest first."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    several = [tuple(rows) for rows in members.values() if len(rows) > 1]
    return tuple(sorted(several, key=lambda rows: -len(rows)))
