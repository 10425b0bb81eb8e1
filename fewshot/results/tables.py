"""Tables of results, made once and written as text, Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import NamedTuple

from fewshot.results.groups import Cells, Point, Row, Value, cells, labels, over_seeds
from fewshot.results.log import Result


class Number(NamedTuple):
    """A number as it is printed.

    Attributes:
        value: Of a percentage, in percent.
        half: Half the width of its 95 % interval; NaN for none.
        digits: After the point.
        signed: Whether a plus is printed.
    """

    value: float
    half: float = nan
    digits: int = 1
    signed: bool = False

    def __str__(self) -> str:
        sign = "+" if self.signed else ""
        rounded = round(self.value, self.digits) + 0.0  # no -0.0
        text = f"{rounded:{sign}.{self.digits}f}"
        return text if isnan(self.half) else f"{text} ± {self.half:.{self.digits}f}"


Cell = str | int | Number


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it shows.
        header: A name for each column.
        rows: The cells; empty strings where there is nothing to show.
        notes: Sentences that belong below it.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    notes: tuple[str, ...] = ()


def text(table: Table) -> str:
    """The table in columns, as for a terminal, without its title."""
    lines = [table.header, *(tuple(map(str, row)) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([*body, *table.notes])


def markdown(table: Table) -> str:
    """The table for GitHub and the like, numbers to the right."""
    lines = [table.header, ["---:" if right else ":---" for right in to_the_right(table)]]
    lines += [[_escaped(str(cell), _MARKDOWN) for cell in row] for row in table.rows]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*body, *(f"\n{note}" for note in table.notes)])


def latex(table: Table) -> str:
    """The table in the style of LaTeX's booktabs, which it needs."""
    columns = "".join("r" if right else "l" for right in to_the_right(table))
    lines = [
        " & ".join(_escaped(str(cell), _LATEX) for cell in row) + r" \\"
        for row in (table.header, *table.rows)
    ]
    notes = [rf"\\[2pt] {_escaped(note, _LATEX)}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.title, _LATEX)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
        ]
    )


def comma_separated(table: Table) -> str:
    """The table as CSV: numbers unrounded, and their intervals in columns of their own."""
    halves = [
        any(isinstance(row[i], Number) and not isnan(row[i].half) for row in table.rows)  # type: ignore[union-attr]  # just tested
        for i in range(len(table.header))
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = zip(table.header, halves, strict=True)
    writer.writerow([name for title, half in names for name in (title, f"{title} ±")[: 1 + half]])
    for row in table.rows:
        line: list[str | int | float] = []
        for cell, half in zip(row, halves, strict=True):
            number = isinstance(cell, Number)
            line.append(cell.value if isinstance(cell, Number) else cell)
            if half:
                line.append(cell.half if number and not isnan(cell.half) else "")  # type: ignore[union-attr]  # just tested
        writer.writerow(line)
    return file.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": text,
    "md": markdown,
    "latex": latex,
    "csv": comma_separated,
}


def curves(results: Sequence[Result]) -> dict[Row, list[Point]]:
    """Accuracies in 0..1 averaged over seeds, for each row its points in order of shots."""
    return points(cells(results))


def points(rows: Cells) -> dict[Row, list[Point]]:
    """For each row its points in order of shots, averaged over seeds."""
    return {row: [over_seeds(rs) for rs in by_shots.values()] for row, by_shots in rows.items()}


def accuracy_table(results: Sequence[Result]) -> str:
    """One line per dataset, model, method and tuning, one column per number of shots, as text.

    A mean over several seeds is followed by half the width of its 95 % interval (Student's t).
    Where results have accuracies of parts of the test split, each part has a line.
    """
    rows = cells(results)
    all_shots = sorted({shots for found in rows.values() for shots in found})
    names = labels(rows)
    told = any(row.setting not in ("few-shot", "zero-shot") for row in rows)
    parted = any(_parts(found) for found in rows.values())
    lines = []
    for row, found in rows.items():
        task = [f"{row.setting} {row.imbalance or row.source}".rstrip()] if told else []
        whole = "H" if row.setting == "base-to-new" else "all"
        for part in (*_parts(found), whole):
            line = [over_seeds(group, _accuracy_of(part)) for group in found.values()]
            classes = [part] if parted else []
            columns = by_shots(line, all_shots)
            lines.append((row.dataset, row.model, names[row], *task, row.tune, *classes, *columns))
    header = ["dataset", "model", "method", *(["setting"] if told else []), "tuned by"]
    header += ["classes"] if parted else []
    return text(Table("", (*header, *map(shots_name, all_shots)), lines))


def _parts(found: Mapping[int, Sequence[Result]]) -> tuple[str, ...]:
    """The parts of the test split of which every result has an accuracy."""
    every = [set(result.accuracies) for group in found.values() for result in group]
    return tuple(
        part
        for part in ("base", "new", "many", "medium", "few")
        if all(part in one for one in every)
    )


def _accuracy_of(part: str) -> Value:
    return lambda result: result.accuracies.get(part, result.accuracy)


def by_shots(line: Sequence[Point], all_shots: Sequence[int]) -> list[Cell]:
    """A cell for each number of shots, in percent; empty where the row has no point."""
    found = {shots: Number(100 * mean, 100 * half) for shots, mean, half in line}
    return [found.get(shots, "") for shots in all_shots]


def shots_name(shots: int) -> str:
    """A column's name."""
    return {0: "no shots", 1: "1 shot"}.get(shots, f"{shots} shots")


def to_the_right(table: Table) -> list[bool]:
    """Which columns hold nothing but numbers."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
    return [
        any(isinstance(cell, Number | int) for cell in column)
        and all(isinstance(cell, Number | int) or not cell for cell in column)
        for column in columns
    ]


_MARKDOWN = {"|": r"\|", "\n": " "}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "→": r"$\rightarrow$",
}  # fmt: skip


def _escaped(cell: str, by: dict[str, str]) -> str:
    return "".join(by.get(character, character) for character in cell)
