"""The report as one HTML page that needs nothing but itself."""

from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path

from fewshot.report.content import Block, Curves, Maps, Report, Scatter, Section
from fewshot.report.drawing import curves_svg, maps_svg, mark_svg, scatter_svg
from fewshot.tables import Cell, Number, Table, to_the_right

HERE = Path(__file__).parent
LONG = 40  # rows from which on a table is folded


def page(report: Report) -> str:
    """The whole page: style, script and drawings are within it."""
    styles = series_styles(report)
    parts = {
        "TITLE": escape(report.title),
        "STYLE": (HERE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8"),
        "NOTES": _paragraphs(report.notes),
        "CONTENTS": "".join(
            f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in report.sections
        ),
        "SECTIONS": "\n".join(_section(part, styles) for part in report.sections),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    before, *rest = text.split("{{")
    for piece in rest:
        name, _, after = piece.partition("}}")
        before += parts[name] + after
    return before


def series_styles(report: Report) -> dict[str, int]:
    """A number for each series, the same on the whole page."""
    names: dict[str, None] = {}
    for part in report.sections:
        for block in part.blocks.values():
            if isinstance(block, Curves):
                names |= dict.fromkeys([*block.series, *block.levels])
            elif isinstance(block, Scatter):
                names |= dict.fromkeys(name for name, *_ in block.points)
    return {name: k for k, name in enumerate(names)}


def _section(part: Section, styles: dict[str, int]) -> str:
    body = []
    for drawn, blocks in groupby(part.blocks.values(), lambda b: not isinstance(b, Table)):
        if drawn:
            figures = "".join(_figure(block, styles) for block in blocks)
            body.append(f'<div class="figures">{figures}</div>')
        else:
            body += [_table(block) for block in blocks if isinstance(block, Table)]
    return (
        f'<section id="{part.name}"><h2>{escape(part.title)}</h2>'
        f"{_paragraphs(part.notes)}{''.join(body)}</section>"
    )


def _paragraphs(notes: Iterable[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=number" if right else ""}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, right in zip(table.header, to_the_right(table), strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    title = escape(table.title)
    whole = (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table>'
        f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"</div>{_paragraphs(table.notes)}"
    )
    if len(table.rows) <= LONG:
        return whole
    count = f"{len(table.rows)} rows"
    return f"<details><summary>{title} <span>({count})</span></summary>{whole}</details>"


def _cell(cell: Cell) -> str:
    """A cell, with the value that it is sorted by."""
    if isinstance(cell, Number):
        return f'<td class="number" data-value="{cell.value!r}">{escape(str(cell))}</td>'
    if isinstance(cell, int):
        return f'<td class="number" data-value="{cell}">{cell:,}</td>'
    long = ' class="long"' if len(cell) > 40 else ""
    return f"<td{long}>{escape(cell)}</td>"


def _figure(block: Block, styles: dict[str, int]) -> str:
    if isinstance(block, Curves):
        drawing = curves_svg(block, styles)
        samples = [(name, mark_svg(styles[name])) for name in block.series]
        samples += [(name, mark_svg(styles[name], level=True)) for name in block.levels]
    elif isinstance(block, Scatter):
        drawing = scatter_svg(block, styles)
        names = dict.fromkeys(name for name, *_ in block.points)
        samples = [(name, mark_svg(styles[name])) for name in names]
    else:
        assert isinstance(block, Maps)
        drawing = "".join(
            f'<div class="map">{maps_svg(block, panel)}<p>{escape(panel)}</p></div>'
            for panel in block.panels
        )
        drawing = f'<div class="maps">{drawing}</div>'
        samples = list(_classes(block))
    wide = ' class="wide"' if isinstance(block, Maps) else ""
    return (
        f"<figure{wide}><figcaption>{escape(block.title)}</figcaption>{drawing}"
        f"{_legend(samples)}</figure>"
    )


def _classes(block: Maps) -> Iterator[tuple[str, str]]:
    for k, name in enumerate(block.names):
        dot = f'<path class="dots c{k % 10}" d="M7 7h0"/>'
        yield name, f'<svg class="dot" viewBox="0 0 14 14" aria-hidden="true">{dot}</svg>'


def _legend(samples: Iterable[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><button type="button" aria-pressed="true" data-series="{escape(name)}">'
        f"{sample}{escape(name)}</button></li>"
        for name, sample in samples
    )
    return f'<ul class="legend" aria-label="Show or hide">{items}</ul>'
