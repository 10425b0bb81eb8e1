"""Drawings as inline SVG: every point carries its values, and colors come from the page."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from fewshot.report.content import Curves, Maps, Scatter

WIDTH, HEIGHT = 560, 350
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 46
N_COLORS = 10

# Marks of about equal area around the origin.
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.8L4.6 3.4H-4.6z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 4.8L4.6 -3.4H-4.6z",
    "M-4.5 -1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
    "M-4.6 0L-2.3 -4H2.3L4.6 0L2.3 4H-2.3z",
)

Scale = Callable[[float], float]


def curves_svg(curves: Curves, styles: Mapping[str, int]) -> str:
    """Accuracy against shots on a doubling scale, with intervals as whiskers.

    Args:
        curves: What to draw.
        styles: Series -> the number of its color and mark.
    """
    all_shots = sorted({shots for line in curves.series.values() for shots, _, _ in line})
    spans = [
        100 * (mean + sign * half)
        for line in curves.series.values()
        for _, mean, half in ((s, m, 0.0 if math.isnan(h) else h) for s, m, h in line)
        for sign in (-1, 1)
    ]
    spans += [100 * level for level in curves.levels.values()]
    low, high = max(0.0, min(spans)), min(100.0, max(spans))
    ticks, y = _axis(low, high, HEIGHT - BOTTOM, TOP)
    first, last = math.log2(all_shots[0]), math.log2(all_shots[-1])
    margin = 0.04 * (WIDTH - LEFT - RIGHT)
    x = _linear(first, max(last, first + 1), LEFT + margin, WIDTH - RIGHT - margin)
    parts = _grid(ticks, y)
    for shots in all_shots:
        parts.append(_x_label(x(math.log2(shots)), str(shots)))
    parts += _names("shots per class", "accuracy, %")
    for name, level in curves.levels.items():
        height = y(100 * level)
        k = styles[name]
        tip = f"{name}, no shots: {100 * level:.1f} %"
        parts.append(
            f'<g class="series" data-series="{escape(name)}">'
            f'<path class="line level c{k % N_COLORS}" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>'
            + _mark(x(first), height, k, tip, "level")
            + "</g>"
        )
    for name, line in curves.series.items():
        k = styles[name]
        positions = [(x(math.log2(s)), y(100 * m)) for s, m, _ in line]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in positions)
        dash = ' stroke-dasharray="7 3"' if k >= N_COLORS else ""
        drawn = [f'<path class="line c{k % N_COLORS}"{dash} d="M{path}"/>']
        for (a, b), (shots, mean, half) in zip(positions, line, strict=True):
            percent = f"{100 * mean:.1f}"
            if not math.isnan(half):
                percent += f" ± {100 * half:.1f}"
                ends = [y(min(high, max(low, 100 * (mean + s * half)))) for s in (-1, 1)]
                drawn.append(
                    f'<path class="whisker c{k % N_COLORS}" '
                    f'd="M{a:.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>'
                )
            what = "1 shot" if shots == 1 else f"{shots} shots"
            drawn.append(_mark(a, b, k, f"{name}, {what}: {percent} %", str(shots)))
        parts.append(f'<g class="series" data-series="{escape(name)}">{"".join(drawn)}</g>')
    return _svg(curves.title, parts)


def scatter_svg(scatter: Scatter, styles: Mapping[str, int]) -> str:
    """Single points; a logarithmic axis has room for 0 at its left."""
    across = [p[1] for p in scatter.points]
    up = [p[2] for p in scatter.points]
    y_ticks, y = _axis(min(up), max(up), HEIGHT - BOTTOM, TOP)
    parts = _grid(y_ticks, y)
    x_ticks, x = _log_axis(across) if scatter.log else _axis(
        min(across), max(across), LEFT, WIDTH - RIGHT
    )  # fmt: skip
    parts += [_x_label(x(tick), f"{tick:,g}", grid=True) for tick in x_ticks]
    parts += _names(scatter.x, scatter.y)
    for i, (name, a, b, what) in enumerate(scatter.points):
        tip = f"{name}, {what}: {scatter.x} {a:.4g}, {scatter.y} {b:.4g}"
        parts.append(
            f'<g class="series" data-series="{escape(name)}">'
            + _mark(x(a), y(b), styles[name], tip, str(i))
            + "</g>"
        )
    return _svg(scatter.title, parts)


def maps_svg(maps: Maps, panel: str) -> str:
    """One map: points without axes, which would say nothing."""
    size = 360
    points = maps.panels[panel]
    low, high = points.min(axis=0), points.max(axis=0)
    placed = 10 + (points - low) / (high - low).clip(1e-9) * (size - 20)
    groups = []
    for k, name in enumerate(maps.names):
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in placed[maps.labels == k])
        groups.append(
            f'<g class="series" data-series="{escape(name)}">'
            f'<path class="dots c{k % N_COLORS}" d="{dots}"><title>{escape(name)}</title></path>'
            "</g>"
        )
    label = escape(f"{maps.title}: {panel}")
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{label}">{"".join(groups)}</svg>'
    )


def mark_svg(k: int, *, level: bool = False) -> str:
    """A legend's sample of a series."""
    color = f"c{k % N_COLORS}"
    line = f'<path class="line {color}{" level" if level else ""}" d="M0 7H28"/>'
    mark = f'<path class="mark {color}" transform="translate(14 7)" d="{MARKS[k % len(MARKS)]}"/>'
    return f'<svg class="sample" viewBox="0 0 28 14" aria-hidden="true">{line}{mark}</svg>'


def _svg(title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _mark(x: float, y: float, k: int, tip: str, column: str) -> str:
    return (
        f'<g class="point" role="img" tabindex="-1" aria-label="{escape(tip)}" '
        f'data-column="{column}" data-x="{x:.1f}" data-y="{y:.1f}" '
        f'transform="translate({x:.1f} {y:.1f})">'
        f'<path class="mark c{k % N_COLORS}" d="{MARKS[k % len(MARKS)]}"/></g>'
    )


def _grid(ticks: Sequence[float], y: Scale) -> list[str]:
    return [
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]


def _x_label(x: float, text: str, *, grid: bool = False) -> str:
    line = f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>' if grid else ""
    return (
        f'{line}<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
        f"{escape(text)}</text>"
    )


def _names(x: str, y: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        (
            f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
            f'text-anchor="middle">{escape(x)}</text>'
        ),
        (
            f'<text class="name" transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(y)}</text>'
        ),
    ]


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _axis(low: float, high: float, start: float, end: float) -> tuple[list[float], Scale]:
    """Round ticks, and a scale on which the values have a little room."""
    room = 0.06 * (high - low) or max(abs(high) * 0.05, 0.5)
    low, high = low - room, high + room
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [round(tick, 10) for tick in ticks], _linear(low, high, start, end)


def _log_axis(values: Sequence[float]) -> tuple[list[float], Scale]:
    """Powers of ten, and a scale that has 0 at its left where it occurs."""
    positive = [value for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)))
    high = max(math.ceil(math.log10(max(positive))), low + 1)
    zero = any(value <= 0 for value in values)
    start = LEFT + (60 if zero else 14)
    logs = _linear(low, high, start, WIDTH - RIGHT - 14)
    ticks = ([0.0] if zero else []) + [10.0**n for n in range(low, high + 1)]
    return ticks, lambda value: LEFT + 14 if value <= 0 else logs(math.log10(value))
