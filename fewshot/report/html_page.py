"""The report as one HTML page that needs no other file."""

from collections.abc import Iterator
from itertools import groupby

from markupsafe import Markup

from fewshot import html
from fewshot.html import Drawing, Drawings, Notes, Part, safe
from fewshot.report.content import Curves, Maps, Report, ReportBlock, Scatter, Section
from fewshot.report.drawing import curves_svg, maps_svg, scatter_svg
from fewshot.svg import N_COLORS, sample
from fewshot.tables import Table


def page(report: Report) -> str:
    """Return the whole page."""
    styles = series_styles(report)
    parts = [_part(section, styles) for section in report.sections]
    return html.page(report.title, parts, html.markup([Notes(report.notes)]))


def series_styles(report: Report) -> dict[str, int]:
    """Return the number of each series, the same on the whole page."""
    names: dict[str, None] = {}
    for part in report.sections:
        for block in part.blocks.values():
            if isinstance(block, Curves):
                names |= dict.fromkeys([*block.series, *block.levels])
            elif isinstance(block, Scatter):
                names |= dict.fromkeys(name for name, *_ in block.points)
    return {name: k for k, name in enumerate(names)}


def _part(section: Section, styles: dict[str, int]) -> Part:
    blocks: list[html.Block] = [Notes(section.notes)]
    for is_table, group in groupby(section.blocks.values(), lambda b: isinstance(b, Table)):
        if is_table:
            blocks += [block for block in group if isinstance(block, Table)]
        else:
            blocks.append(Drawings([_drawing(block, styles) for block in group]))
    return Part(section.name, section.title, blocks)


def _drawing(block: ReportBlock, styles: dict[str, int]) -> Drawing:
    if isinstance(block, Curves):
        legend = [(name, sample(styles[name])) for name in block.series]
        legend += [(name, sample(styles[name], is_level=True)) for name in block.levels]
        return Drawing(block.title, curves_svg(block, styles), legend)
    if isinstance(block, Scatter):
        names = dict.fromkeys(name for name, *_ in block.points)
        legend = [(name, sample(styles[name])) for name in names]
        return Drawing(block.title, scatter_svg(block, styles), legend)
    assert isinstance(block, Maps)
    panels = Markup("").join(
        Markup('<div class="map">{}<p>{}</p></div>').format(maps_svg(block, panel), safe(panel))
        for panel in block.panels
    )
    svg = Markup('<div class="maps">{}</div>').format(panels)
    return Drawing(block.title, svg, list(_classes(block)), wide=True)


def _classes(block: Maps) -> Iterator[tuple[str, Markup]]:
    dot = Markup(
        '<svg class="dot" viewBox="0 0 14 14" aria-hidden="true">'
        '<path class="dots c{}" d="M7 7h0"/></svg>'
    )
    for k, name in enumerate(block.names):
        yield name, dot.format(k % N_COLORS)
