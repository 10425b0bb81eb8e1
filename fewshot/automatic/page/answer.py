"""The top of the page: the accuracy, how it was found, its limits, and what to do next."""

from collections.abc import Iterator, Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from cache.errors import count
from fewshot import html
from fewshot.automatic.outcome import Tested
from fewshot.automatic.wording import in_100
from fewshot.metrics import ClassMetrics
from fewshot.model_selection.near_duplicates import Conflict
from fewshot.model_selection.selection import Selection

MANY_ALIKE = 10  # photos of different labels in one group, beyond which it is the model's fault
FEW = 30  # judged photos, fewer than which leave a range too wide to lean on


def answer(
    selection: Selection | None,
    *,
    method: str,
    summary: str,
    guessing: float,
    tested: Tested | None,
    limits: Sequence[str],
    command: str,
    doubtful: int,
    to_label: int,
    more_labels: str,
) -> Markup:
    """Return the top of the page.

    Args:
        selection: How the method was chosen; None where nothing could be judged.
        method: Its name.
        summary: One sentence on it.
        guessing: The accuracy of always predicting the most frequent class.
        tested: The accuracy on the user's own test photos; None without any.
        limits: By `limits`.
        command: What classifies new photos.
        doubtful: How many labels to look at again.
        to_label: How many photos to label first.
        more_labels: A sentence on what more labels would bring.
    """
    zero_shot = None
    if selection is not None and method != "zero-shot":
        score = selection.score_of("zero-shot")
        zero_shot = None if score is None else score.accuracy
    marks = [("guessing", guessing)]
    if zero_shot is not None:
        marks.append(("class names alone", zero_shot))
    judged = "" if selection is None else f"your {count(selection.n_images, 'labeled photo')}"
    return html.render(
        "answer.html", selection=selection, marks=marks, judged=judged, zero_shot=zero_shot,
        tested=tested, method=method, summary=summary, limits=limits, command=command,
        doubtful=doubtful, to_label=to_label, more_labels=more_labels,
        right=in_100, count=count, percent=_percent,
    )  # fmt: skip


def _percent(share: float) -> str:
    """Return a share as a length in a style."""
    return f"{100 * share:.1f}%"


def guessing(labels: Tensor) -> float:
    """Return the accuracy of always predicting the most frequent class, in 0..1."""
    return float(torch.bincount(labels).max() / len(labels))


def limits(
    selection: Selection | None,
    groups: Tensor,
    metrics: Sequence[ClassMetrics],
    names: Sequence[str],
    conflicts: Sequence[Conflict],
    *,
    guessing: float,
    skipped: int,
    pending: Sequence[str] = (),
) -> Iterator[str]:
    """Say what the answer does not cover.

    Args:
        selection: How the method was chosen; None where nothing could be judged.
        groups: (N,) scenes, which folds keep together.
        metrics: C, one of each class.
        names: Of the C classes.
        conflicts: Near-duplicates of more than one class.
        guessing: The accuracy of always predicting the most frequent class.
        skipped: How many photos could not be read.
        pending: The methods or models still to be tried.
    """
    if pending:
        yield (
            "This is a first answer, of what takes the least time. Still to be tried when it was "
            f"written: {', '.join(pending)}. The same command tries them."
        )
    if selection is not None:
        yield (
            "This holds for photos like those in the folder: the same kinds of scenes and cameras, "
            "the classes in the same proportions, and nothing that belongs to none of them."
        )
        if selection.n_groups < FEW:
            yield (
                f"Only {count(selection.n_groups, 'photo')} could be held back, so the "
                "range is wide: more labels would narrow it, whatever else they do."
            )
        if selection.interval[0] <= guessing:
            yield (
                "That is not clearly better than always answering the commonest class, which gets "
                f"{in_100(guessing)} right. Does this model know such photos? Are the "
                "class names words that tell what is to be seen? More labels may help, or another "
                "--model."
            )
        lonely = [name for name, one in zip(names, metrics, strict=True) if not one.images]
        if lonely:
            named = f"{', '.join(lonely[:5])}{' and others' if len(lonely) > 5 else ''}"
            yield (
                f"Not judged: {count(len(lonely), 'class', 'classes')} with a single photo, or "
                f"near-duplicates of one ({named}). They were learned, but how well nobody can say."
            )
    together = int((torch.bincount(groups)[groups] > 1).sum())
    if together:
        yield (
            f"To this model {count(together, 'photo is', 'photos are')} much like another of the "
            "same class, as in a burst. Such photos were always hidden together, so that none is "
            "recognized by its twin."
        )
    alike = max((conflict.rows for conflict in conflicts), key=len, default=())
    if selection is not None and len(alike) > max(MANY_ALIKE, len(groups) // 50):
        yield (
            f"{len(alike):,} photos of more than one class look nearly the same to this model; "
            "another --model may tell them apart."
        )
    if skipped:
        yield f"{count(skipped, 'photo')} could not be read and took no part."
