"""The sections of the page that show photos."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.errors import count
from fewshot.automatic.confusions import ConfusedPair, Confusion
from fewshot.automatic.label_issues import LabelIssue
from fewshot.automatic.page.thumbnails import Thumbnails
from fewshot.automatic.unlabeled import Unlabeled
from fewshot.automatic.wording import in_100
from fewshot.html import Block, Folded, Gallery, Notes, Paragraph, Photo
from fewshot.tables import Cell, Number, Table

OPEN_PAIRS = 5  # the others are folded
SHOWN = 24  # label issues with photos
LISTED = 1000  # label issues in a table
GROUPS, MEMBERS = 12, 6  # of near-duplicates
SURE = 0.9


@dataclass(frozen=True, eq=False)
class LabeledPhotos:
    """Renders the labeled photos.

    Attributes:
        source: The photos.
        paths: N paths relative to the source's root.
        labels: N class ids.
        names: Of the C classes.
        thumbnails: Makes the small copies.
    """

    source: Source
    paths: Sequence[str]
    labels: Sequence[int]
    names: Sequence[str]
    thumbnails: Thumbnails

    def photo(
        self, row: int, *lines: str, answer: str = "", small: str = "", copied: bool = False
    ) -> Photo:
        """Return a photo with its caption, and with a button to copy its path if it is `copied`."""
        path = self.paths[row]
        return Photo(
            self.thumbnails.of(self.source, path),
            f"{path}, labeled {self.names[self.labels[row]]}",
            lines,
            answer,
            small,
            path=str(self.source.root / path) if copied else "",
            name=path,
        )


def confusions(
    pairs: Sequence[ConfusedPair], probabilities: Tensor, labeled: LabeledPhotos
) -> list[Block]:
    """Return the pairs of classes most often confused, with the most confident mistakes.

    Args:
        pairs: The most frequent first.
        probabilities: (N, C) of the labeled photos.
        labeled: The photos.
    """
    if not pairs:
        return [Notes(["No class was taken for another."])]
    blocks: list[Block] = [_pair(pair, probabilities, labeled) for pair in pairs]
    rest = blocks[OPEN_PAIRS:]
    more = Folded(count(len(rest), "pair more", "pairs more"), rest)
    return [*blocks[:OPEN_PAIRS], *([more] if rest else [])]


def _pair(pair: ConfusedPair, probabilities: Tensor, labeled: LabeledPhotos) -> Gallery:
    names = labeled.names
    ways = [way for way in (pair.more, pair.less) if way.count]
    shown = [
        labeled.photo(
            row,
            f"is {names[way.label]}",
            "taken for",
            answer=names[way.predicted],
            small=f"{100 * float(probabilities[row, way.predicted]):.0f} % sure",
        )
        for way in ways
        for row in way.rows
    ]
    title = f"{names[pair.more.label]} and {names[pair.more.predicted]}"
    return Gallery(shown, title, f"{', '.join(_mistakes(way, names) for way in ways)}.")


def _mistakes(way: Confusion, names: Sequence[str]) -> str:
    return f"{count(way.count, 'photo')} of {names[way.label]} taken for {names[way.predicted]}"


def label_issues(
    issues: Sequence[LabelIssue], accuracy: float | None, labeled: LabeledPhotos
) -> list[Block]:
    """Return the photos whose label is probably wrong, the most probable first.

    Args:
        issues: In that order.
        accuracy: Of the classifier that doubts them; None where nobody can say.
        labeled: The photos.
    """
    if not issues:
        return [Notes(["No label stands out as wrong."])]
    blocks: list[Block] = []
    if accuracy is not None:
        wrong = 1 - accuracy
        blocks.append(
            Notes(
                [
                    "The likeliest first. Each was judged by a classifier that had not learned "
                    f"from it. It is itself wrong {in_100(wrong)} times, so "
                    + ("expect many of these labels to be right." if wrong > 0.2
                       else "some may be right.")
                ]
            )
        )  # fmt: skip
    blocks.append(Gallery([_issue(one, labeled) for one in issues[:SHOWN]]))
    if issues[SHOWN:]:
        blocks.append(_further(issues, labeled))
    return blocks


def _issue(one: LabelIssue, labeled: LabeledPhotos) -> Photo:
    small = "(a near-duplicate has that label)"
    if not one.duplicate and one.p_label is not None and one.p_suggested is not None:
        small = f"({100 * one.p_suggested:.0f} % against {100 * one.p_label:.0f} %)"
    return labeled.photo(
        one.row,
        f"labeled {labeled.names[one.label]}",
        "perhaps",
        answer=labeled.names[one.suggested],
        small=small,
        copied=True,
    )


def _further(issues: Sequence[LabelIssue], labeled: LabeledPhotos) -> Table:
    rows: list[list[Cell]] = [
        [
            labeled.paths[one.row],
            labeled.names[one.label],
            labeled.names[one.suggested],
            "" if one.p_suggested is None else Number(100 * one.p_suggested),
        ]
        for one in issues[SHOWN:LISTED]
    ]
    unlisted = len(issues) - SHOWN - len(rows)
    notes = (f"And {unlisted:,} more, listed in report.json.",) if unlisted else ()
    return Table("Further labels", ("photo", "label", "looks like", "probability, %"), rows, notes)


def near_duplicates(
    groups: Sequence[tuple[int, ...]],
    conflicting: Collection[tuple[int, ...]],
    labeled: LabeledPhotos,
) -> list[Block]:
    """Return groups of near-duplicates, those of more than one label first.

    Args:
        groups: Rows of each group.
        conflicting: Those of more than one label.
        labeled: The photos.
    """
    ordered = sorted(groups, key=lambda rows: rows not in conflicting)
    blocks: list[Block] = []
    for rows in ordered[:GROUPS]:
        times = Counter(labeled.labels[row] for row in rows)
        # Photos of rare labels first, so that every label is seen.
        rarest = sorted(rows, key=lambda row: times[labeled.labels[row]])
        shown = [
            labeled.photo(row, labeled.paths[row], labeled.names[labeled.labels[row]])
            for row in rarest[:MEMBERS]
        ]
        conflict = "not all with the same label" if rows in conflicting else ""
        text = count(len(rows), "photo") + (", " if conflict else "")
        blocks += [Paragraph(text, bold=conflict), Gallery(shown)]
    if len(ordered) > GROUPS:
        blocks.append(
            Notes([f"And {count(len(ordered) - GROUPS, 'group')} more, listed in report.json."])
        )
    return blocks


def unlabeled(found: Unlabeled, names: Sequence[str], thumbnails: Thumbnails) -> list[Block]:
    """Return the predictions of the photos without a label, and which to label next.

    Args:
        found: The photos.
        names: Of the C classes.
        thumbnails: Makes the small copies.
    """
    confidence, predicted = found.probabilities.max(dim=1)
    sure = confidence >= SURE
    counts, of_sure = (
        torch.bincount(ids, minlength=len(names)).tolist() for ids in (predicted, predicted[sure])
    )
    rows = [(name, n, k) for name, n, k in zip(names, counts, of_sure, strict=True) if n]
    rows.sort(key=lambda row: -row[1])
    blocks: list[Block] = [
        Paragraph(
            f"{count(len(found.paths), 'photo')} in {found.source.root}; of {int(sure.sum()):,} "
            f"the probability is {100 * SURE:.0f} % or more. All answers are in predictions.csv "
            "beside this page."
        )
    ]
    if found.skipped:
        blocks.append(Notes([f"{count(len(found.skipped), 'photo')} could not be read."]))
    header = ("class", "photos", f"{100 * SURE:.0f} % sure")
    blocks.append(Table("What they were taken for", header, rows))
    if found.next:
        shown = [_to_label(found, i, names, thumbnails) for i in range(len(found.next))]
        text = "The ones it doubts most, and no two alike."
        blocks.append(Gallery(shown, "Label these first", text))
    return blocks


def _to_label(found: Unlabeled, i: int, names: Sequence[str], thumbnails: Thumbnails) -> Photo:
    one = found.next[i]
    path = found.paths[one.row]
    best, other = (
        f"{names[label]} {100 * float(found.probabilities[one.row, label]):.0f} %"
        for label in (one.predicted, one.runner_up)
    )
    return Photo(
        thumbnails.of(found.source, path),
        f"{path}, no label",
        (best, f"or {other}"),
        path=str(found.source.root / path),
        name=path,
    )
