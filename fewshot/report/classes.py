"""Accuracy, precision and F1 of each class, and the classes most often confused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError, count
from fewshot.metrics import ClassMetrics
from fewshot.report.content import Section
from fewshot.report.lines import at_shots, largest, series_names
from fewshot.results.groups import Cells
from fewshot.results.log import Result
from fewshot.results.prediction_files import Predictions, read_predictions
from fewshot.tables import Cell, Number, Table

PAIRS = 8  # confusions shown of each row
MEASURES: dict[str, tuple[str, Callable[[ClassMetrics], float | None]]] = {
    "classes": ("accuracy (recall)", lambda one: one.recall),
    "precision": ("precision", lambda one: one.precision),
    "f1": ("F1", lambda one: one.f1),
}


@dataclass(frozen=True, eq=False)
class Confusions:
    """How often images of a class were taken for another, summed over seeds.

    Attributes:
        counts: (C, C), true class by predicted class.
        classnames: C names.
        images: Digest of the test images.
        n_seeds: How many predictions of each image were counted.
    """

    counts: NDArray[np.int64]
    classnames: tuple[str, ...]
    images: str
    n_seeds: int

    @property
    def metrics(self) -> tuple[ClassMetrics, ...]:
        """C, one of each class."""
        counts = (self.counts.sum(axis=1), self.counts.sum(axis=0), np.diag(self.counts))
        return tuple(ClassMetrics(*map(int, of_class)) for of_class in zip(*counts, strict=True))

    def pairs(self, n: int) -> Iterator[tuple[int, int, float, float]]:
        """The n most frequent: true class, predicted class, images per seed, share of the class."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:n]
        for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True):
            times = int(wrong[true, predicted])
            if times:
                share = times / int(self.counts[true].sum())
                yield int(true), int(predicted), times / self.n_seeds, share


def confusions(predictions: Sequence[Predictions]) -> Confusions:
    """The confusions in predictions on the same test images.

    Raises:
        UserError: They are of different images.
    """
    first = predictions[0]
    if any((p.images, p.classnames) != (first.images, first.classnames) for p in predictions):
        raise UserError("predictions on different test images cannot be counted together")
    n = len(first.classnames)
    counts = np.zeros((n, n), np.int64)
    for one in predictions:
        np.add.at(counts, (one.labels, one.predicted), 1)
    return Confusions(counts, first.classnames, first.images, len(predictions))


def found(results: Sequence[Result]) -> tuple[list[Predictions], list[str]]:
    """The predictions that are where the results say, and what is wrong with the others."""
    read, problems = [], []
    for result in results:
        if result.predictions is None:
            continue
        try:
            read.append(read_predictions(Path(result.predictions)))
        except UserError as error:
            problems.append(str(error))
    return read, problems


def add_classes(section: Section, rows: Cells) -> None:
    """Add what is known of each class at each row's most shots, where predictions were saved."""
    names = series_names(rows)
    tables: dict[tuple[str, str], dict[str, Confusions]] = {}
    problems: list[str] = []
    for row, shots, group in largest(rows):
        read, wrong = found(group)
        problems += wrong
        by_images: dict[str, list[Predictions]] = {}
        for one in read:
            by_images.setdefault(one.images, []).append(one)
        for images, same in by_images.items():
            label = at_shots(names[row], shots)
            tables.setdefault((row.dataset, images), {})[label] = confusions(same)
    if problems:
        section.notes.append(
            f"{count(len(problems), 'file')} of predictions left out; the first: {problems[0]}"
        )
    for (dataset, images), by_label in tables.items():
        again = sum(name == dataset for name, _ in tables) > 1
        where = f"{dataset}-{images[:6]}" if again else dataset
        for name, (title, value) in MEASURES.items():
            section.blocks[f"{name}-{where}"] = _measured(f"{dataset}: {title}", by_label, value)
        pairs = _pairs(dataset, by_label)
        if pairs.rows:
            section.blocks[f"confusions-{where}"] = pairs


def _measured(
    title: str, by_label: dict[str, Confusions], value: Callable[[ClassMetrics], float | None]
) -> Table:
    """One of `MEASURES` of each class by each method."""
    first = next(iter(by_label.values()))
    totals = first.counts.sum(axis=1) // first.n_seeds
    columns = [[*map(value, c.metrics)] for c in by_label.values()]
    lines: list[tuple[Cell, ...]] = [
        (name, int(totals[k]), *(_percent(column[k]) for column in columns))
        for k, name in enumerate(first.classnames)
        if totals[k]
    ]
    return Table(
        f"{title} of each class", ("class", "test images", *by_label), lines,
        ("In %, over all seeds whose predictions were saved.",),
    )  # fmt: skip


def _percent(share: float | None) -> Cell:
    return "" if share is None else Number(100 * share)


def _pairs(dataset: str, by_label: dict[str, Confusions]) -> Table:
    lines: list[tuple[Cell, ...]] = [
        (
            label, c.classnames[true], c.classnames[predicted],
            Number(images), Number(100 * share),
        )
        for label, c in by_label.items()
        for true, predicted, images, share in c.pairs(PAIRS)
    ]  # fmt: skip
    return Table(
        f"{dataset}: classes most often confused",
        ("method", "class", "taken for", "images", "% of the class"),
        lines,
        ("Images per seed.",),
    )
