"""What the page begins with: how good it is, how that is known, and what to do next."""

from collections.abc import Iterator
from html import escape
from pathlib import PurePath

import torch

from fewshot.automatic.outcome import Outcome, count, in_100, more_labels
from fewshot.automatic.page.drawings import scale
from fewshot.automatic.page.pieces import copyable, paragraphs
from fewshot.methods import METHODS

MANY_ALIKE = 10  # photos of different labels in one group, beyond which it is the model's fault
FEW = 30  # judged photos, fewer than which leave a range too wide to lean on


def title(outcome: Outcome) -> str:
    """The page's heading."""
    return f"Your photos in {PurePath(outcome.dataset).name or outcome.store.dataset}"


def guessing(outcome: Outcome) -> float:
    """The accuracy of always answering the commonest class, 0..1."""
    labels = outcome.validation.labels
    return float(torch.bincount(labels).max() / len(labels))


def answer(outcome: Outcome) -> str:
    """The answer, how it was found, what limits it, and what to do next."""
    gloss = METHODS[outcome.winner].summary
    chosen = (
        f'<p>The method: <strong class="method">{escape(outcome.winner)}</strong>. '
        f"{escape(gloss)}</p>"
    )
    steps = "".join(f"<li>{step}</li>" for step in _next(outcome))
    return (
        f'<div class="top"><div class="answer">{_headline(outcome)}{chosen}'
        f'{paragraphs(_limits(outcome))}</div><div class="next"><h2>What to do next</h2>'
        f"<ol>{steps}</ol></div></div>"
    )


def _headline(outcome: Outcome) -> str:
    selection, interval = outcome.validation.selection, outcome.interval
    if selection is None or interval is None:
        return (
            '<p class="big">How good it is nobody can say yet</p><p>To judge a method, photos have '
            "to be held back from it, and every class has but one photo (or near-duplicates of "
            "one). A second photo of each class, of another scene, would tell. Until then one "
            "method is taken on trust, which did well elsewhere with so few labels.</p>"
        )
    n_methods = len(selection.scores)
    picked = f", and corrected for the luck of picking the best of {n_methods} methods"
    low, high = (round(100 * share) for share in interval)
    marks = [("guessing", guessing(outcome))]
    lines = [
        (
            f'<p class="big">About <strong>{in_100(selection.accuracy)}</strong> new photos '
            "right</p>"
        ),
        (
            f"<p>Very likely between {low} and {high} in 100 (95 % interval). Found by hiding a "
            f"fifth of your {count(len(outcome.validation.labels), 'labeled photo')} at a time, "
            "learning from the rest and asking for the hidden ones"
            f"{picked if n_methods > 1 else ''}.</p>"
        ),
    ]
    if outcome.zero_shot is not None and outcome.winner != "zero-shot":
        marks.append(("class names alone", outcome.zero_shot.accuracy))
        lines.append(
            f"<p>Without any of your labels, from the class names alone: "
            f"<strong>{escape(in_100(outcome.zero_shot.accuracy))}</strong>.</p>"
        )
    if outcome.tested is not None:
        low, high = (round(100 * share) for share in outcome.tested.interval)
        lines.append(
            f"<p>On your own {count(outcome.tested.images, 'test photo')}, which no choice "
            f"depended on: <strong>{escape(in_100(outcome.tested.accuracy))}</strong> right "
            f"({low} to {high}).</p>"
        )
    big, *rest = lines
    return f"{big}{scale(selection.accuracy, interval, marks)}{''.join(rest)}"


def _limits(outcome: Outcome) -> Iterator[str]:
    """What the answer does not cover."""
    judged, names = outcome.validation, outcome.store.classnames
    if judged.selection is not None:
        yield (
            "This holds for photos like those in the folder: the same kinds of scenes and cameras, "
            "the classes in the same proportions, and nothing that belongs to none of them."
        )
        if judged.selection.n_groups < FEW:
            yield (
                f"Only {count(judged.selection.n_groups, 'photo')} could be held back, so the "
                "range is wide: more labels would narrow it, whatever else they do."
            )
        interval = outcome.interval
        if interval is not None and interval[0] <= guessing(outcome):
            yield (
                "That is not clearly better than always answering the commonest class, which gets "
                f"{in_100(guessing(outcome))} right. Does this model know such photos? Are the "
                "class names words that tell what is to be seen? More labels may help, or another "
                "--model."
            )
        lonely = [names[one.label] for one in outcome.diagnostics.class_metrics if not one.images]
        if lonely:
            named = f"{', '.join(lonely[:5])}{' and others' if len(lonely) > 5 else ''}"
            yield (
                f"Not judged: {count(len(lonely), 'class', 'classes')} with a single photo, or "
                f"near-duplicates of one ({named}). They were learned, but how well nobody can say."
            )
    together = int((torch.bincount(judged.groups)[judged.groups] > 1).sum())
    if together:
        yield (
            f"To this model {count(together, 'photo is', 'photos are')} much like another of the "
            "same class, as in a burst. Such photos were always hidden together, so that none is "
            "recognized by its twin."
        )
    alike = max((conflict.rows for conflict in outcome.diagnostics.conflicts), key=len, default=())
    if judged.selection is not None and len(alike) > max(MANY_ALIKE, len(judged.labels) // 50):
        yield (
            f"{len(alike):,} photos of more than one class look nearly the same to this model; "
            "another --model may tell them apart."
        )
    if outcome.store.skipped:
        yield f"{count(len(outcome.store.skipped), 'photo')} could not be read and took no part."


def _next(outcome: Outcome) -> Iterator[str]:
    """What to do next, as HTML."""
    yield f"Classify new photos: {copyable(outcome.commands[-1].line)}"
    n = outcome.doubtful_labels
    if n:
        labels = count(n, "label that may be wrong", "labels that may be wrong")
        yield (
            f'<a href="#suspects">Look at {labels}</a>, the likeliest first. Put right what is '
            "wrong and run the same command again."
        )
    if outcome.unlabeled is not None and outcome.unlabeled.next:
        photos = count(len(outcome.unlabeled.next), "photo")
        yield f'<a href="#unlabeled">Label these {photos} first</a>: they would teach it most.'
    says = more_labels(outcome)
    yield f'<a href="#labels">More labels</a>: {escape(says)}.'
