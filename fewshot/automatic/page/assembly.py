"""The page: the answer first, then what it rests on, then what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from cache.images.skipped import Skipped
from fewshot import html
from fewshot.automatic.commands import Command
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.page.accuracy_tables import (
    backbones_table,
    classes_table,
    methods_table,
    most_confused,
)
from fewshot.automatic.page.answer import answer, guessing, limits
from fewshot.automatic.page.galleries import (
    LabeledPhotos,
    confusions,
    label_issues,
    near_duplicates,
    unlabeled,
)
from fewshot.automatic.page.learning_curve_drawing import curve_svg
from fewshot.automatic.page.thumbnails import Thumbnails
from fewshot.automatic.page.unsure import none_of_these, sets_of_classes
from fewshot.html import Block, Drawing, Drawings, Notes, Paragraph, Part, Preformatted, Steps
from fewshot.methods import METHODS
from fewshot.model_selection.learning_curve import LearningCurve
from fewshot.tables import Table

NAMED = 200  # photos left out that are listed


def page(outcome: Outcome) -> str:
    """Return the whole page."""
    selection, diagnostics = outcome.validation.selection, outcome.diagnostics
    chance = guessing(outcome.validation.labels)
    top = answer(
        selection,
        method=outcome.winner,
        summary=METHODS[outcome.winner].summary,
        guessing=chance,
        tested=outcome.tested,
        limits=list(
            limits(
                selection,
                outcome.validation.groups,
                diagnostics.class_metrics,
                outcome.store.classnames,
                diagnostics.conflicts,
                guessing=chance,
                skipped=len(outcome.store.skipped),
                pending=outcome.validation.pending,
            )
        ),
        command=outcome.commands[-1].line,
        doubtful=outcome.doubtful_labels,
        to_label=len(outcome.unlabeled.next) if outcome.unlabeled else 0,
        more_labels=outcome.more_labels,
    )
    title = f"Your photos in {PurePath(outcome.dataset).name or outcome.source.title}"
    return html.page(title, list(_parts(outcome)), top)


def _parts(outcome: Outcome) -> Iterator[Part]:
    """Yield the sections that there is something to show in."""
    validation, diagnostics = outcome.validation, outcome.diagnostics
    names, p = outcome.store.classnames, outcome.probabilities
    thumbnails = Thumbnails()
    labels = validation.labels.tolist()
    summaries = {name: method.summary for name, method in METHODS.items()}
    labeled = LabeledPhotos(outcome.source, outcome.paths, labels, names, thumbnails)
    if validation.selection is not None and p is not None:
        methods = methods_table(
            validation.selection,
            validation.failed,
            validation.given_up,
            validation.left_out,
            summaries,
        )
        yield Part("tried", "What was tried", [methods])
        if outcome.backbones:
            compared = backbones_table(outcome.backbones, validation.selection, outcome.store.model)
            yield Part("backbones", "Which model", [compared])
        confused = most_confused(p, validation.labels, validation.fold >= 0)
        classes = classes_table(
            outcome.winner, names, validation.labels, diagnostics.class_metrics, confused
        )
        yield Part("classes", "Each class", [classes])
        pairs = confusions(diagnostics.pairs, p, labeled)
        yield Part("confusions", "What gets confused", pairs)
        if outcome.coverages:
            yield Part("sets", "When one answer is not enough", sets_of_classes(outcome.coverages))
        yield Part("unknown", "None of these", none_of_these(outcome.adapter.open_set))
    if p is not None or diagnostics.label_issues:
        issues = label_issues(diagnostics.label_issues, outcome.accuracy, labeled)
        yield Part("suspects", "Labels to look at again", issues)
    level = None if outcome.zero_shot is None else outcome.zero_shot.accuracy
    curve = more_labels(outcome.winner, diagnostics.curve, outcome.more_labels, len(labels), level)
    yield Part("labels", "Would more labels help?", curve)
    if outcome.unlabeled is not None:
        beside = unlabeled(outcome.unlabeled, names, thumbnails)
        yield Part("unlabeled", "Photos without a label", beside)
    if diagnostics.duplicates:
        conflicting = {conflict.rows for conflict in diagnostics.conflicts}
        groups = near_duplicates(diagnostics.duplicates, conflicting, labeled)
        yield Part("duplicates", "Near-duplicates", groups)
    data = photos(
        outcome.report.report(),
        outcome.store.skipped,
        f"Model {outcome.store.model}; features in {outcome.store.path}.",
        outcome.seconds,
    )
    yield Part("data", "The photos", data)
    yield Part("commands", "The commands", commands(outcome.commands, Path.cwd()))


def more_labels(
    method: str, curve: LearningCurve | None, sentence: str, present: int, zero_shot: float | None
) -> list[Block]:
    """Return the learning curve, and what more labels would bring.

    Args:
        method: The winner's name.
        curve: None for a method that uses no labels.
        sentence: What more labels would bring.
        present: How many photos are labeled now.
        zero_shot: Accuracy without labels, 0..1.
    """
    blocks: list[Block] = [Paragraph("", bold=f"{sentence[:1].upper()}{sentence[1:]}.")]
    if curve is None or not curve.points:
        return blocks
    caption = f"{method}, learning from more and more of your photos"
    blocks.append(Drawings([Drawing(caption, curve_svg(curve, present, zero_shot))]))
    notes = [
        (
            "Each point is the share of photos held back that was right, having learned from "
            "so many labeled ones; the bars are how much that varied with which those were."
        )
    ]
    for one in curve.credible:
        low, high = (f"{100 * share:.1f}" for share in one.interval)
        notes.append(
            f"{one.times} times as many labels: {100 * one.accuracy:.1f} in 100 expected, "
            f"{low} to {high}. A forecast from the curve so far (dashed), and no promise."
        )
    return [*blocks, Notes(notes)]


def photos(
    report: str, skipped: Sequence[Skipped], features: str, seconds: Mapping[str, float]
) -> list[Block]:
    """Return the pre-flight report, the photos that cannot be read, and how long it took.

    Args:
        report: As the terminal shows it.
        skipped: The photos left out.
        features: A sentence on the model and the store.
        seconds: Stage -> how long it took.
    """
    blocks: list[Block] = [Preformatted(report)]
    if skipped:
        rows = [(f"{one.split}/{one.path}", one.reason) for one in skipped[:NAMED]]
        more = len(skipped) - NAMED
        notes = (f"And {more:,} more, listed in report.json.",) if more > 0 else ()
        blocks.append(Table("Left out, as they cannot be read", ("photo", "why"), rows, notes))
    took = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items())
    return [*blocks, Notes([features, f"It took: {took}."])]


def commands(steps: Sequence[Command], directory: Path) -> list[Block]:
    """Return the commands that repeat each step, as typed in a directory."""
    note = (
        f"To be typed in {directory}; commands.sh beside this page has them too, and report.json "
        "every figure."
    )
    return [Steps([(step.does, step.line) for step in steps]), Notes([note])]
