"""Average precision, precision, recall, F1 and threshold of each class, of several labels."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from fewshot.report.content import Section, slug
from fewshot.report.lines import at_shots, largest, series_names
from fewshot.results.groups import Cells
from fewshot.results.log import Result
from fewshot.tables import Cell, Number, Table

IMAGES = "test images"
ByRow = dict[str, Sequence[Result]]


def add_label_tables(section: Section, rows: Cells) -> None:
    """Add a table for each figure of a class, where images may have several labels.

    Of each row at its most shots; the figure of a class is the mean over seeds.
    """
    names = series_names(rows)
    found: dict[tuple[str, str], ByRow] = {}
    for row, shots, group in largest(rows):
        if all(one.by_class and one.classnames for one in group):
            stored = (row.dataset, group[0].fingerprint)
            found.setdefault(stored, {})[at_shots(names[row], shots)] = group
    for (dataset, fingerprint), by_row in found.items():
        again = sum(name == dataset for name, _ in found) > 1
        where = f"{dataset}-{fingerprint[:6]}" if again else dataset
        figures = dict.fromkeys(name for group in by_row.values() for name in _figures(group[0]))
        for figure in figures:
            if figure != IMAGES:
                section.blocks[f"{slug(figure)}-{where}"] = _table(dataset, figure, by_row)


def _table(dataset: str, figure: str, by_row: ByRow) -> Table:
    """One figure of each class by each row that has it."""
    having = {name: group for name, group in by_row.items() if figure in _figures(group[0])}
    first = next(iter(having.values()))[0]
    lines: list[tuple[Cell, ...]] = [
        (name, int(images), *(_percent(group, figure, k) for group in having.values()))
        for k, name in enumerate(first.classnames or ())
        if (images := _figures(first)[IMAGES][k])
    ]
    return Table(
        f"{dataset}: {figure} of each class", ("class", IMAGES, *having), lines,
        ("In %, means over seeds.",),
    )  # fmt: skip


def _percent(group: Sequence[Result], figure: str, k: int) -> Cell:
    values = [value for one in group if (value := _figures(one)[figure][k]) is not None]
    return Number(100 * fmean(values)) if values else ""


def _figures(result: Result) -> Mapping[str, Sequence[float | None]]:
    return result.by_class or {}
