"""The tables of the page: each method, and each class."""

from collections.abc import Mapping, Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from cache.errors import count
from fewshot.automatic.backbones import Backbone, losses
from fewshot.html import safe
from fewshot.metrics import ClassMetrics
from fewshot.model_selection.cross_validation import Failed
from fewshot.model_selection.race import GivenUp
from fewshot.model_selection.selection import MethodScore, Selection
from fewshot.tables import Cell, Number, Table


def methods_table(
    selection: Selection,
    failed: Sequence[Failed],
    given_up: Sequence[GivenUp],
    left_out: Mapping[str, str],
    summaries: Mapping[str, str],
) -> Table:
    """Return the score of each method, the winner marked.

    Args:
        selection: The scores.
        failed: Methods that could not be fitted.
        given_up: Methods that could not win any more.
        left_out: Method -> why it was not tried.
        summaries: Method -> one sentence on it.
    """
    notes = [
        (
            f"Right: of {count(selection.n_images, 'photo')}, each classified by a classifier that "
            "had not seen it, whose settings were chosen without it too. The interval is where the "
            "figure would lie with other photos like these, 95 times in 100. Mean of classes: "
            "every class counts the same, however many photos it has. Confidence off by: how far "
            "the probabilities are from the share that is right, on average, in points."
        ),
        (
            "The winner: of the methods so close to the best that chance may be the difference, "
            "the one whose probabilities fit best. The answer at the top is lower than its figure "
            "here where picking the best of many flattered it."
        ),
    ]
    notes += [f"Could not be tried: {one.name}, {one.why}." for one in failed]
    if given_up:
        behind = (
            f"{one.name}, {100 * one.accuracy:.0f} % right of {count(one.images, 'photo')} where "
            f"{one.ahead} had {100 * one.accuracy_ahead:.0f} %"
            for one in given_up
        )
        notes.append(
            f"Not tried to the end, as they could not win any more: {'; '.join(behind)}. "
            "With --thorough they are."
        )
    if left_out:
        notes.append(f"Not tried: {'; '.join(f'{name}, {why}' for name, why in left_out.items())}.")
    return Table(
        "Methods, judged on photos held back",
        (
            "method", "right, %", "95 % interval", "0 to 100", "mean of classes, %",
            "confidence off by", "seconds",
        ),
        [_method(one, selection.winner, summaries.get(one.name, "")) for one in selection.scores],
        tuple(notes),
        marked=[one.name for one in selection.scores].index(selection.winner),
    )  # fmt: skip


def backbones_table(backbones: Sequence[Backbone], selection: Selection, winner: str) -> Table:
    """Return the score of each model with its best method, the winner marked.

    Args:
        backbones: The models.
        selection: How the winner was chosen.
        winner: The name of the best model.
    """
    notes = [
        (
            "Milliseconds for each photo: reading, cropping and encoding, measured here on the "
            "first ones. The choice was among all methods on all models, and the answer at the top "
            "is corrected for it."
        ),
        *(f"{sentence}." for sentence in losses(backbones, selection, winner)),
    ]
    rows: list[list[Cell]] = [
        [
            one.model, one.score.name, Number(100 * one.score.accuracy),
            "{:.1f} to {:.1f}".format(*(100 * end for end in one.score.interval)),
            Number(1000 * one.seconds),
        ]
        for one in backbones
    ]  # fmt: skip
    return Table(
        "Models, the fastest first",
        ("model", "best method", "right, %", "95 % interval", "ms per photo"),
        rows,
        tuple(notes),
        marked=[one.model for one in backbones].index(winner),
    )


def _method(score: MethodScore, winner: str, summary: str) -> list[Cell]:
    star = " ★ the winner" if score.name == winner else ""
    low, high = score.interval
    return [
        Markup("<strong>{}</strong>{}<small>{}</small>").format(
            safe(score.name), star, safe(summary)
        ),
        Number(100 * score.accuracy),
        f"{100 * low:.1f} to {100 * high:.1f}",
        bar(score.accuracy, score.interval),
        Number(100 * score.balanced_accuracy),
        Number(100 * score.calibration_error),
        Number(score.seconds),
    ]


def bar(accuracy: float, interval: tuple[float, float]) -> Markup:
    """Return an accuracy with its interval, drawn on a scale from 0 to 100."""
    low, high = (100 * share for share in interval)
    return Markup(
        '<svg class="bar" viewBox="-5 0 110 12" aria-hidden="true">'
        '<path class="grid" d="M0 6H100"/><path class="range" d="M{:.1f} 6H{:.1f}"/>'
        '<circle class="dot" cx="{:.1f}" cy="6" r="3.2"/></svg>'
    ).format(low, high, 100 * accuracy)


def classes_table(
    method: str,
    names: Sequence[str],
    labels: Tensor,
    metrics: Sequence[ClassMetrics],
    confused: Mapping[int, int],
) -> Table:
    """Return recall, precision and F1 of each class, the lowest recall first.

    Args:
        method: The winner's name.
        names: Of the C classes.
        labels: (N,) class ids.
        metrics: C, one of each class.
        confused: Class -> what it is most often predicted as, by `most_confused`.
    """
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    rows: list[list[Cell]] = [
        [
            names[label],
            counts[label],
            one.images,
            _percent(one.recall),
            _percent(one.precision),
            _percent(one.f1),
            names[confused[label]] if label in confused else "",
        ]
        for label, one in sorted(enumerate(metrics), key=_hardest_first)
    ]
    header = (
        "class", "labeled photos", "judged", "recognized (recall), %",
        "right when it says so (precision), %", "F1, %", "most often taken for",
    )  # fmt: skip
    return Table(f"How {method} does on each class, the hardest first", header, rows)


def _hardest_first(of_class: tuple[int, ClassMetrics]) -> tuple[bool, float]:
    _, one = of_class
    return one.recall is None, one.recall or 0.0


def _percent(share: float | None) -> Cell:
    return "" if share is None else Number(100 * share)


def most_confused(probabilities: Tensor, labels: Tensor, judged: Tensor) -> dict[int, int]:
    """Return for each class that has mistakes what it is most often predicted as.

    Args:
        probabilities: (N, C).
        labels: (N,) class ids.
        judged: (N,) bool.
    """
    predicted, truth = probabilities[judged].argmax(dim=1), labels[judged]
    wrong = predicted != truth
    pairs, times = torch.unique(
        torch.stack([truth[wrong], predicted[wrong]]), dim=1, return_counts=True
    )
    most: dict[int, tuple[int, int]] = {}
    for label, other, n in zip(*pairs.tolist(), times.tolist(), strict=True):
        most[label] = max(most.get(label, (0, 0)), (n, other))
    return {label: other for label, (_, other) in most.items()}
