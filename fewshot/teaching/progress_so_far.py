"""How good the classifier is by the labels so far, how it came there, and which labels look wrong.

Photos that are proposed because they are hard say little of the others. So the accuracy is that on
photos proposed by a random draw from all that had no label then, each classified by a classifier
fitted to the other folds of the labels: a fair sample of the folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.automatic.label_issues import LabelIssue, find_label_issues
from fewshot.metrics import ClassMetrics, class_metrics, wilson
from fewshot.model_selection.calibration import temperature
from fewshot.model_selection.folds import folds
from fewshot.model_selection.learning_curve import CurvePoint, LearningCurve
from fewshot.model_selection.near_duplicates import conflicts, near_duplicates, scenes
from fewshot.teaching.live_classifier import live_classifier

MINIMUM = 5  # photos of a random draw before an accuracy is shown
SMALLEST = 4  # labels of the first point of the curve


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels so far, in the order in which they were given.

    Attributes:
        features: (N, D) of the labeled photos, of unit norm.
        labels: (N,) class ids.
        drawn: (N,) bool, true for photos that a random draw had proposed.
        text: C texts of unit norm, or None each where the model reads none.
        logit_scale: CLIP's inverse temperature.
        rows: N rows of the photos among all of the folder.
        position: Of the log, the number of its last action.
        names: C names of the classes.
    """

    features: Tensor
    labels: Tensor
    drawn: Tensor
    text: Sequence[Tensor | None]
    logit_scale: float
    rows: Sequence[int] = ()
    position: int = 0
    names: Sequence[str] = ()

    def held_out_logits(self, fold: Tensor, n: int, asked: Tensor) -> Tensor:
        """(N, C) logits of photos held out, by the first n labels less those of their fold.

        Args:
            fold: (N,) fold of each photo.
            n: How many of the labels there are to learn from.
            asked: (N,) bool, the photos to classify.

        Returns:
            NaN for the other photos, for those in no fold, and where nothing could be fitted.
        """
        found = torch.full((len(self.labels), len(self.text)), torch.nan)
        early = torch.arange(len(self.labels)) < n
        for k in range(int(fold.max()) + 1):
            rows, train = asked & (fold == k), early & (fold != k)
            classifier = live_classifier(
                self.features[train], self.labels[train], self.text, self.logit_scale
            )
            if classifier is not None and rows.any():
                found[rows] = classifier.logits(self.features[rows])
        return found


@dataclass(frozen=True, eq=False)
class Progress:
    """Findings from the labels so far.

    Attributes:
        given: The labels.
        judged: Photos of a random draw that were held out.
        right: How many of them were classified as labeled.
        interval: 95 % interval of the share, by Wilson; it is wide where few were judged.
        classes: C, recall, precision and F1 of each class, of the same photos; none without any.
        curve: The share by the first labels, half of them, all of them; None without a point.
        zero_shot: The share by the class names alone; None where the model reads none.
        issues: Labels to look at again, by rows of the labels; the surest first.
        temperature: T of the classifier's probabilities, softmax(logits / T).
    """

    given: Labels
    judged: int = 0
    right: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    classes: tuple[ClassMetrics, ...] = ()
    curve: LearningCurve | None = None
    zero_shot: float | None = None
    issues: tuple[LabelIssue, ...] = ()
    temperature: float = 1.0

    @property
    def enough(self) -> bool:
        """True if so many were judged that the accuracy is worth showing."""
        return self.judged >= MINIMUM


def progress_so_far(given: Labels) -> Progress:
    """Judge the labels so far."""
    labels, n = given.labels, len(given.labels)
    if len(torch.unique(labels)) < 2:
        return Progress(given)
    fold = folds(labels, groups=scenes(given.features, labels), seed=1)
    if not (fold >= 0).any():
        return Progress(given)
    logits = given.held_out_logits(fold, n, fold >= 0)
    seen = ~torch.isnan(logits).any(dim=1)
    t = _temperature(logits[seen], labels[seen])
    twins = conflicts(near_duplicates(given.features), labels)
    issues = find_label_issues(torch.softmax(logits / t, dim=1), labels, seen, twins)
    judged = given.drawn & (fold >= 0)
    n_judged = int(judged.sum())
    if not n_judged:
        return Progress(given, issues=issues, temperature=t)
    earlier = [size for size in (n // 8, n // 4, n // 2) if size >= SMALLEST]
    found = [*(given.held_out_logits(fold, size, judged) for size in earlier), logits]
    right = [_right(part[judged], labels[judged]) for part in found]
    return Progress(
        given,
        judged=n_judged,
        right=right[-1],
        interval=wilson(right[-1] / n_judged, n_judged),
        classes=_classes(logits[judged], labels[judged]),
        curve=_curve([*earlier, n], right, n_judged),
        zero_shot=_zero_shot(given, judged),
        issues=issues,
        temperature=t,
    )


def _right(logits: Tensor, labels: Tensor) -> int:
    """How many are classified as labeled; none of those that nothing could be fitted for."""
    fitted = ~torch.isnan(logits).any(dim=1)
    return int((logits[fitted].argmax(dim=1) == labels[fitted]).sum())


def _classes(logits: Tensor, labels: Tensor) -> tuple[ClassMetrics, ...]:
    """The metrics of each class; a photo that nothing could be fitted for is of no class."""
    fitted = ~torch.isnan(logits).any(dim=1)
    predicted = torch.where(fitted, logits.argmax(dim=1), logits.shape[1])
    return class_metrics(predicted, labels, logits.shape[1])


def _curve(sizes: Sequence[int], right: Sequence[int], judged: int) -> LearningCurve:
    points = []
    for size, n_right in zip(sizes, right, strict=True):
        share = n_right / judged
        low, high = wilson(share, judged)
        spread = max(
            share - low, high - share
        )  # the longer side of the interval: 7 of 7 is 65..100
        points.append(CurvePoint(0, float(size), share, spread))
    return LearningCurve(tuple(points), ())


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """T of the classes that have photos, as the others' logits may be minus infinity."""
    known = torch.unique(labels)
    return temperature(logits[:, known], torch.searchsorted(known, labels))


def _zero_shot(given: Labels, judged: Tensor) -> float | None:
    nobody = torch.zeros(0, dtype=torch.int64)
    names = live_classifier(given.features[:0], nobody, given.text, given.logit_scale)
    if names is None:
        return None
    found = names.logits(given.features[judged]).argmax(dim=1)
    return float((found == given.labels[judged]).double().mean())
