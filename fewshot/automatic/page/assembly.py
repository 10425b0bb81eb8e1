"""The page: the answer first, then what it rests on, then what to do about it."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import torch

from fewshot.automatic.outcome import Outcome, count, more_labels
from fewshot.automatic.page.answer import answer, title
from fewshot.automatic.page.drawings import bar, curve_svg
from fewshot.automatic.page.galleries import confusions, duplicates, shower, suspects, unlabeled
from fewshot.automatic.page.pieces import Cell, copyable, number, paragraphs, percent, table, text
from fewshot.automatic.page.thumbnails import Thumbnails
from fewshot.methods import METHODS

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "report"  # whose frame, style and script this page shares
NAMED = 200  # photos left out that are listed


def page(outcome: Outcome) -> str:
    """The whole page: style, script, drawings and photos are within it."""
    sections = list(_sections(outcome))
    parts = {
        "TITLE": escape(title(outcome)),
        "STYLE": _both("css"),
        "SCRIPT": _both("js"),
        "NOTES": answer(outcome),
        "CONTENTS": "".join(
            f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections
        ),
        "SECTIONS": "\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>'
            for name, heading, body in sections
        ),
    }
    whole, *rest = (REPORT / "page.html").read_text(encoding="utf-8").split("{{")
    for piece in rest:
        name, _, after = piece.partition("}}")
        whole += parts[name] + after
    return whole


def _both(kind: str) -> str:
    """The report's style or script, and ours after it."""
    files = (REPORT / f"page.{kind}", HERE / f"photos.{kind}")
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _sections(outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """Each section's name, heading and content."""
    thumbnails = Thumbnails()
    show = shower(outcome, thumbnails)
    judged = outcome.validation.selection is not None
    if judged:
        yield "tried", "What was tried", _tried(outcome)
        yield "classes", "Each class", _classes(outcome)
        yield "confusions", "What gets confused", confusions(outcome, show)
    if judged or outcome.diagnostics.label_issues:
        yield "suspects", "Labels to look at again", suspects(outcome, show)
    yield "labels", "Would more labels help?", _labels(outcome)
    if outcome.unlabeled is not None:
        yield (
            "unlabeled",
            "Photos without a label",
            unlabeled(outcome, outcome.unlabeled, thumbnails),
        )
    if outcome.diagnostics.duplicates:
        yield "duplicates", "Near-duplicates", duplicates(outcome, show)
    yield "data", "The photos", _data(outcome)
    yield "commands", "The commands", _commands(outcome)


def _tried(outcome: Outcome) -> str:
    selection = outcome.validation.selection
    assert selection is not None
    rows = [
        [
            Cell(
                f"<strong>{escape(one.name)}</strong>"
                + (" ★ the winner" if one.name == selection.winner else "")
                + f"<small>{escape(METHODS[one.name].summary)}</small>",
                kind="long",
            ),
            percent(one.accuracy),
            Cell(f"{100 * one.interval[0]:.1f} to {100 * one.interval[1]:.1f}", one.interval[0]),
            Cell(bar(one.accuracy, one.interval)),
            percent(one.balanced_accuracy),
            percent(one.calibration_error),
            number(one.seconds, 1),
        ]
        for one in selection.scores
    ]
    at = [one.name for one in selection.scores].index(selection.winner)
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
    notes += [f"Could not be tried: {one.name}, {one.why}." for one in outcome.validation.failed]
    if outcome.validation.left_out:
        left_out = "; ".join(f"{name}, {why}" for name, why in outcome.validation.left_out.items())
        notes.append(f"Not tried: {left_out}.")
    header = (
        "method", "right, %", "95 % interval", "0 to 100", "mean of classes, %",
        "confidence off by", "seconds",
    )  # fmt: skip
    return table("Methods, judged on photos held back", header, rows, marked=at, notes=notes)


def _classes(outcome: Outcome) -> str:
    names = outcome.store.classnames
    counts = torch.bincount(outcome.validation.labels, minlength=len(names)).tolist()
    taken = _taken_for(outcome)
    figures = sorted(
        outcome.diagnostics.class_metrics,
        key=lambda f: (f.recall is None, f.recall or 0.0, f.label),
    )
    rows = [
        [
            text(names[one.label]),
            number(counts[one.label]),
            number(one.images),
            percent(one.recall),
            percent(one.precision),
            text(names[taken[one.label]] if one.label in taken else ""),
        ]
        for one in figures
    ]
    header = (
        "class", "labeled photos", "judged", "recognized, %", "right when it says so, %",
        "most often taken for",
    )  # fmt: skip
    return table(f"How {outcome.winner} does on each class, the hardest first", header, rows)


def _taken_for(outcome: Outcome) -> dict[int, int]:
    """For each class what it is most often mistaken for."""
    p = outcome.probabilities
    if p is None:
        return {}
    labels, seen = outcome.validation.labels, outcome.validation.fold >= 0
    predicted, truth = p[seen].argmax(dim=1), labels[seen]
    wrong = predicted != truth
    pairs, times = torch.unique(
        torch.stack([truth[wrong], predicted[wrong]]), dim=1, return_counts=True
    )
    most: dict[int, tuple[int, int]] = {}
    for label, other, n in zip(*pairs.tolist(), times.tolist(), strict=True):
        most[label] = max(most.get(label, (0, 0)), (n, other))
    return {label: other for label, (_, other) in most.items()}


def _labels(outcome: Outcome) -> str:
    said = more_labels(outcome)
    parts = [f"<p><strong>{escape(said[:1].upper() + said[1:])}.</strong></p>"]
    curve = outcome.diagnostics.curve
    if curve is not None and curve.points:
        level = None if outcome.zero_shot is None else outcome.zero_shot.accuracy
        drawing = curve_svg(curve, len(outcome.validation.labels), level)
        parts.append(
            f'<figure class="curve"><figcaption>{escape(outcome.winner)}, learning from more and '
            f"more of your photos</figcaption>{drawing}</figure>"
        )
        notes = [
            (
                "Each point is the share of photos held back that was right, having learned from "
                "so many labeled ones; the bars are how much that varied with which those were."
            )
        ]
        for one in curve.forecasts:
            low, high = (f"{100 * share:.1f}" for share in one.interval)
            notes.append(
                f"{one.times} times as many labels: {100 * one.accuracy:.1f} in 100 expected, "
                f"{low} to {high}. A forecast from the curve so far (dashed), and no promise."
            )
        parts.append(paragraphs(notes))
    return "".join(parts)


def _data(outcome: Outcome) -> str:
    parts = [f"<pre>{escape(outcome.report.report())}</pre>"]
    skipped = outcome.store.skipped
    if skipped:
        rows = [
            [text(f"{split}/{path}", "long"), text(reason, "long")]
            for split, path, reason in skipped[:NAMED]
        ]
        parts.append(table("Left out, as they cannot be read", ("photo", "why"), rows))
        if len(skipped) > NAMED:
            parts.append(paragraphs([f"And {len(skipped) - NAMED:,} more, listed in report.json."]))
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in outcome.seconds.items())
    parts.append(
        paragraphs(
            [
                f"Model {outcome.store.model}; features in {outcome.store.path}.",
                f"It took: {took}.",
            ]
        )
    )
    return "".join(parts)


def _commands(outcome: Outcome) -> str:
    steps = "".join(
        f"<li>{escape(step.does)}: {copyable(step.line)}</li>" for step in outcome.commands
    )
    note = (
        f"To be typed in {Path.cwd()}; commands.sh beside this page has them too, and report.json "
        "every figure."
    )
    return f"<ol>{steps}</ol>{paragraphs([note])}"
