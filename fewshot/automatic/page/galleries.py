"""The sections of the page that show photos."""

from collections import Counter
from collections.abc import Callable
from html import escape

import torch

from cache.source import Source
from fewshot.automatic.confusions import ConfusedPair, Confusion
from fewshot.automatic.label_issues import LabelIssue
from fewshot.automatic.outcome import Outcome, count, in_100
from fewshot.automatic.page.pieces import (
    copyable,
    folded,
    number,
    paragraphs,
    percent,
    photo,
    photos,
    table,
    text,
)
from fewshot.automatic.page.thumbnails import Thumbnails
from fewshot.automatic.unlabeled import Unlabeled

OPEN_PAIRS = 5  # the others are folded
SHOWN = 24  # shown with photos
LISTED = 1000  # shown in a table
GROUPS, MEMBERS = 12, 6  # of near-duplicates
SURE = 0.9

Show = Callable[[int, str], str]  # row and caption (HTML) -> the photo


def shower(outcome: Outcome, thumbnails: Thumbnails) -> Show:
    """What shows a labeled photo."""
    paths, names = outcome.paths, outcome.store.classnames
    labels = outcome.validation.labels.tolist()

    def show(row: int, caption: str) -> str:
        small = thumbnails.of(outcome.source, paths[row])
        return photo(small, f"{paths[row]}, labeled {names[labels[row]]}", caption)

    return show


def confusions(outcome: Outcome, show: Show) -> str:
    """The pairs of classes that are most often confused, with the surest mistakes."""
    if not outcome.diagnostics.pairs:
        return paragraphs(["No class was taken for another."])
    pairs = [_pair(outcome, pair, show) for pair in outcome.diagnostics.pairs]
    more = count(len(pairs) - OPEN_PAIRS, "pair more", "pairs more")
    rest = folded(more, "".join(pairs[OPEN_PAIRS:])) if len(pairs) > OPEN_PAIRS else ""
    return "".join(pairs[:OPEN_PAIRS]) + rest


def _pair(outcome: Outcome, pair: ConfusedPair, show: Show) -> str:
    names, p = outcome.store.classnames, outcome.probabilities
    a, b = (escape(names[label]) for label in (pair.more.label, pair.more.predicted))
    ways = [way for way in (pair.more, pair.less) if way.count]
    said = ", ".join(_mistakes(way, names) for way in ways)
    shown = []
    for way in ways:
        for row in way.rows:
            sure = "" if p is None else f"{100 * float(p[row, way.predicted]):.0f} % sure"
            shown.append(
                show(row, f"is {escape(names[way.label])}<br>taken for "
                          f"<strong>{escape(names[way.predicted])}</strong><small>{sure}</small>")
            )  # fmt: skip
    return f"<h3>{a} and {b}</h3><p>{said}.</p>{photos(shown)}"


def _mistakes(way: Confusion, names: tuple[str, ...]) -> str:
    label, predicted = escape(names[way.label]), escape(names[way.predicted])
    return f"{count(way.count, 'photo')} of {label} taken for {predicted}"


def suspects(outcome: Outcome, show: Show) -> str:
    """The photos whose label is likely wrong, the likeliest first."""
    found = outcome.diagnostics.label_issues
    if not found:
        return paragraphs(["No label stands out as wrong."])
    names, paths = outcome.store.classnames, outcome.paths
    shown = [
        show(one.row, _suspicion(one, names) + _path(outcome.source, paths[one.row]))
        for one in found[:SHOWN]
    ]
    rest = found[SHOWN:LISTED]
    more = ""
    if rest:
        rows = [
            [
                text(paths[one.row], "long"),
                text(names[one.label]),
                text(names[one.suggested]),
                percent(one.p_suggested),
            ]
            for one in rest
        ]
        unlisted = len(found) - SHOWN - len(rest)
        notes = [f"And {unlisted:,} more, listed in report.json."] if unlisted else []
        header = ("photo", "label", "looks like", "probability, %")
        more = table("Further labels", header, rows, notes=notes)
    wrong = 1 - (outcome.accuracy or 0.0)
    doubt = [
        "The likeliest first. Each was judged by a classifier that had not learned from it. "
        f"It is itself wrong {in_100(wrong)} times, so "
        + ("expect many of these labels to be right." if wrong > 0.2 else "some may be right.")
    ]
    return paragraphs(doubt if outcome.accuracy is not None else []) + photos(shown) + more


def _suspicion(one: LabelIssue, names: tuple[str, ...]) -> str:
    label, suggested = escape(names[one.label]), escape(names[one.suggested])
    if one.duplicate:
        why = "a near-duplicate has that label"
    else:
        assert one.p_label is not None
        assert one.p_suggested is not None
        why = f"{100 * one.p_suggested:.0f} % against {100 * one.p_label:.0f} %"
    return f"labeled {label}<br>perhaps <strong>{suggested}</strong><small>({why})</small>"


def _path(source: Source, path: str) -> str:
    """Where a photo is, to be copied in full."""
    return copyable(str(source.root / path), path)


def duplicates(outcome: Outcome, show: Show) -> str:
    """Groups of near-duplicates, those with two labels marked."""
    twice = {conflict.rows for conflict in outcome.diagnostics.conflicts}
    groups = sorted(outcome.diagnostics.duplicates, key=lambda rows: rows not in twice)
    labels, names = outcome.validation.labels.tolist(), outcome.store.classnames
    parts = []
    for rows in groups[:GROUPS]:
        note = ", <strong>not all with the same label</strong>" if rows in twice else ""
        times = Counter(labels[row] for row in rows)
        rarest = sorted(rows, key=lambda row: times[labels[row]])  # so that every label is seen
        shown = photos(
            show(row, f"{escape(outcome.paths[row])}<br>{escape(names[labels[row]])}")
            for row in rarest[:MEMBERS]
        )
        parts.append(f"<p>{count(len(rows), 'photo')}{note}</p>{shown}")
    if len(groups) > GROUPS:
        parts.append(
            paragraphs([f"And {len(groups) - GROUPS:,} groups more, listed in report.json."])
        )
    return "".join(parts)


def unlabeled(outcome: Outcome, found: Unlabeled, thumbnails: Thumbnails) -> str:
    """What the photos without a label were taken for, and which to label next."""
    names = outcome.store.classnames
    confidence, predicted = found.probabilities.max(dim=1)
    sure = confidence >= SURE
    counts, of_sure = (
        torch.bincount(ids, minlength=len(names)).tolist() for ids in (predicted, predicted[sure])
    )
    rows = [
        [text(name), number(n), number(k)]
        for name, n, k in zip(names, counts, of_sure, strict=True)
        if n
    ]
    rows.sort(key=lambda row: -(row[1].value or 0))
    summary = (
        f"<p>{count(len(found.paths), 'photo')} in {escape(str(found.source.root))}; of "
        f"{int(sure.sum()):,} the probability is {100 * SURE:.0f} % or more. All answers are in "
        "<code>predictions.csv</code> beside this page.</p>"
    )
    if found.skipped:
        summary += paragraphs([f"{count(len(found.skipped), 'photo')} could not be read."])
    shown = []
    for one in found.next:
        path = found.paths[one.row]
        best, other = (escape(names[label]) for label in (one.predicted, one.runner_up))
        p, q = (
            100 * float(found.probabilities[one.row, k]) for k in (one.predicted, one.runner_up)
        )
        shown.append(
            photo(
                thumbnails.of(found.source, path),
                f"{path}, no label",
                f"{best} {p:.0f} %<br>or {other} {q:.0f} %" + _path(found.source, path),
            )
        )
    return (
        summary
        + table("What they were taken for", ("class", "photos", f"{100 * SURE:.0f} % sure"), rows)
        + "<h3>Label these first</h3><p>The ones it doubts most, and no two alike.</p>"
        + photos(shown)
    )
