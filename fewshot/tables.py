"""Tables, made once and written as text, Markdown, LaTeX or CSV."""

import csv
import html
import io
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import NamedTuple

from rich.cells import cell_len

from cache.errors import printable


class Number(NamedTuple):
    """A number as it is printed.

    Attributes:
        value: Of a percentage, in percent.
        half: Half the width of its 95 % interval; NaN for none.
        digits: After the point.
        signed: Print a plus.
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
        title: Its caption.
        header: The name of each column.
        rows: The cells; empty strings where there is no value.
        notes: Sentences to show below it.
        marked: The row that stands out on a page.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    notes: tuple[str, ...] = ()
    marked: int | None = None


def text(table: Table) -> str:
    """Return the table in aligned columns for a terminal, without its title."""
    lines = [[printable(str(cell)) for cell in row] for row in (table.header, *table.rows)]
    widths = column_widths(lines)
    return "\n".join([*(aligned(line, widths) for line in lines), *map(printable, table.notes)])


def column_widths(rows: Iterable[Sequence[str]]) -> list[int]:
    """Return the width of each column in a terminal, where some characters take two places."""
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def aligned(cells: Sequence[str], widths: Sequence[int], right: Collection[int] = ()) -> str:
    """Return one line of a text table.

    Args:
        cells: Of one row.
        widths: By `column_widths`.
        right: Which columns are aligned to the right.
    """
    columns = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_len(cell))
        columns.append(space + cell if i in right else cell + space)
    return "  ".join(columns).rstrip()


def markdown(table: Table) -> str:
    """Return the table for GitHub and the like, numbers to the right."""
    lines = [
        [markdown_text(cell) for cell in table.header],
        ["---:" if right else ":---" for right in to_the_right(table)],
        *([markdown_text(str(cell)) for cell in row] for row in table.rows),
    ]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*body, *(f"\n{markdown_text(note)}" for note in table.notes)])


def markdown_text(value: str) -> str:
    """Return plain text as one line of Markdown, or as a cell of a table."""
    line = printable(re.sub(r"\s+", " ", value).strip())
    return re.sub(r"([\\`*_{}\[\]#!|~$])", r"\\\1", html.escape(line, quote=False))


def latex(table: Table) -> str:
    """Return the table in LaTeX, in the style of its package booktabs."""
    columns = "".join("r" if right else "l" for right in to_the_right(table))
    lines = [
        " & ".join(_latex_text(str(cell)) for cell in row) + r" \\"
        for row in (table.header, *table.rows)
    ]
    notes = [rf"\\[2pt] {_latex_text(note)}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_text(table.title)}}}",
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
    """Return the table as CSV: numbers unrounded, and their intervals in columns of their own."""
    halves = [
        any(isinstance(row[i], Number) and not isnan(row[i].half) for row in table.rows)  # type: ignore[union-attr]  # just tested
        for i in range(len(table.header))
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = zip(table.header, halves, strict=True)
    writer.writerow(
        [
            spreadsheet_safe(name)
            for title, half in names
            for name in (title, f"{title} ±")[: 1 + half]
        ]
    )
    for row in table.rows:
        line: list[str | int | float] = []
        for cell, half in zip(row, halves, strict=True):
            number = isinstance(cell, Number)
            line.append(_csv_value(cell))
            if half:
                line.append(cell.half if number and not isnan(cell.half) else "")  # type: ignore[union-attr]  # just tested
        writer.writerow(line)
    return file.getvalue().rstrip("\n")


def _csv_value(cell: Cell) -> str | int | float:
    match cell:
        case Number():
            return cell.value
        case str():
            return spreadsheet_safe(cell)
        case _:
            return cell


def spreadsheet_safe(value: str) -> str:
    """Return the text such that no spreadsheet takes it for a formula.

    A text that begins as formulas do gets an apostrophe before it, as OWASP advises:
    https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": text,
    "md": markdown,
    "latex": latex,
    "csv": comma_separated,
}


def to_the_right(table: Table) -> list[bool]:
    """Return for each column whether it holds only numbers, which are aligned to the right."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
    return [
        any(isinstance(cell, Number | int) for cell in column)
        and all(isinstance(cell, Number | int) or not cell for cell in column)
        for column in columns
    ]


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "→": r"$\rightarrow$",
}  # fmt: skip


def _latex_text(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(value))
