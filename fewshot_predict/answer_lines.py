"""Answers as lines of text, those of `fewshot predict`: a table or JSON lines."""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

BLOCK = 32  # images that the widths of a table are chosen by


@dataclass(frozen=True)
class Answer:
    """The classes of one image, each with its calibrated probability, most probable first.

    Attributes:
        ranked: All classes.
        labels: Those that are its labels, possibly none, where it may have several; None where it
            has one, which is the first.
    """

    ranked: list[tuple[str, float]]
    labels: list[tuple[str, float]] | None

    def plain(self, path: str, top: int) -> dict[str, object]:
        """The object that a JSON line holds, of the `top` most probable classes."""
        said: dict[str, object] = {
            "path": path,
            "label": self._label(),
            "confidence": _short(self.ranked[0][1]),
        }
        if self.labels is not None:
            said["label_probabilities"] = [_short(p) for _, p in self.labels]
        names, probabilities = zip(*self.ranked[:top], strict=True)
        return {**said, "classes": names, "probabilities": [_short(p) for p in probabilities]}

    def cells(self, path: str, top: int) -> tuple[str, str, str, str]:
        """Path, label, its probability in percent, and the classes after it, of a table."""
        if self.labels is None:
            percent, after = _percent(self.ranked[0][1]), self.ranked[1:top]
        else:
            percent, after = ";".join(_percent(p) for _, p in self.labels), self.ranked[:top]
        listed = ", ".join(f"{name} {_percent(p)}" for name, p in after)
        return printable(path), printable(self._label()), percent, printable(listed)

    def _label(self) -> str:
        labels = self.ranked[:1] if self.labels is None else self.labels
        return ";".join(name for name, _ in labels)


def lines(answers: Iterable[tuple[str, Answer]], top: int, form: str) -> Iterator[str]:
    """Yield the lines of the answers to images, as these come.

    Args:
        answers: The path of each image, and its answer.
        top: Number of classes in each.
        form: `table` or `jsonl`.
    """
    if form == "jsonl":
        yield from (json.dumps(answer.plain(path, top)) for path, answer in answers)
        return
    answers = iter(answers)
    first = list(islice(answers, BLOCK))
    if not first:
        return
    last = "next" if min(top, len(first[0][1].ranked)) > 1 else ""
    header = ("image", "label", "%", last if first[0][1].labels is None else "most probable")
    begin = [header, *(answer.cells(path, top) for path, answer in first)]
    widths = [max(map(_width, column)) for column in zip(*begin, strict=True)]
    widths[2] = max(widths[2], len("100.0"))
    for cells in chain(begin, (answer.cells(path, top) for path, answer in answers)):
        yield _aligned(cells, widths)


def printable(text: str) -> str:
    """The text on one line: newlines, escapes and what else moves a cursor are written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One row of the table, its percentages to the right."""
    path, label, after = (cells[i] + " " * (widths[i] - _width(cells[i])) for i in (0, 1, 3))
    return "  ".join((path, label, cells[2].rjust(widths[2]), after)).rstrip()


def _width(text: str) -> int:
    """Places in a terminal, where wide characters take two and combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f}"


def _short(probability: float) -> float:
    """Six digits: more would be of the machine, not of the image."""
    return float(f"{probability:.6g}")
