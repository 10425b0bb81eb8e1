"""The drawings of a report as inline SVG."""

import math
from collections.abc import Mapping

from markupsafe import Markup

from cache.errors import count
from fewshot.html import safe
from fewshot.report.content import Curves, Maps, Scatter
from fewshot.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    N_COLORS,
    RIGHT,
    TOP,
    WIDTH,
    axis,
    axis_names,
    chart,
    grid,
    level,
    line,
    linear,
    log_axis,
    point,
    series,
    whisker,
    x_labels,
)


def curves_svg(curves: Curves, styles: Mapping[str, int]) -> Markup:
    """Return accuracy against shots on a doubling scale, with intervals as whiskers.

    Args:
        curves: What to draw.
        styles: Series -> the number of its color and mark.
    """
    all_shots = sorted({shots for one in curves.series.values() for shots, _, _ in one})
    spans = [
        100 * (mean + sign * half)
        for one in curves.series.values()
        for _, mean, half in ((s, m, 0.0 if math.isnan(h) else h) for s, m, h in one)
        for sign in (-1, 1)
    ]
    spans += [100 * accuracy for accuracy in curves.levels.values()]
    low, high = max(0.0, min(spans)), min(100.0, max(spans))
    ticks, y = axis(low, high, HEIGHT - BOTTOM, TOP)
    first, last = math.log2(all_shots[0]), math.log2(all_shots[-1])
    margin = 0.04 * (WIDTH - LEFT - RIGHT)
    x = linear(first, max(last, first + 1), LEFT + margin, WIDTH - RIGHT - margin)
    parts = grid(ticks, y)
    parts += x_labels([(x(math.log2(shots)), str(shots)) for shots in all_shots])
    parts += axis_names("shots per class", "accuracy, %")
    for name, accuracy in curves.levels.items():
        height, k = y(100 * accuracy), styles[name]
        tip = f"{name}, no shots: {100 * accuracy:.1f} %"
        drawn = [level(height, f"line level c{k % N_COLORS}")]
        parts.append(series(name, [*drawn, point(x(first), height, k, tip, "level")]))
    for name, one in curves.series.items():
        k = styles[name]
        positions = [(x(math.log2(s)), y(100 * m)) for s, m, _ in one]
        drawn = [line(positions, f"line c{k % N_COLORS}", "7 3" if k >= N_COLORS else "")]
        for (a, b), (shots, mean, half) in zip(positions, one, strict=True):
            percent = f"{100 * mean:.1f}"
            if not math.isnan(half):
                percent += f" ± {100 * half:.1f}"
                ends = [y(min(high, max(low, 100 * (mean + s * half)))) for s in (-1, 1)]
                drawn.append(whisker(a, ends[0], ends[1], k))
            drawn.append(point(a, b, k, f"{name}, {count(shots, 'shot')}: {percent} %", str(shots)))
        parts.append(series(name, drawn))
    return chart(curves.title, parts)


def scatter_svg(scatter: Scatter, styles: Mapping[str, int]) -> Markup:
    """Return single points; a logarithmic axis has room for 0 at its left."""
    across = [p[1] for p in scatter.points]
    up = [p[2] for p in scatter.points]
    y_ticks, y = axis(min(up), max(up), HEIGHT - BOTTOM, TOP)
    x_ticks, x = log_axis(across) if scatter.log else axis(
        min(across), max(across), LEFT, WIDTH - RIGHT
    )  # fmt: skip
    parts = grid(y_ticks, y)
    parts += x_labels([(x(tick), f"{tick:,g}") for tick in x_ticks], lines=True)
    parts += axis_names(scatter.x, scatter.y)
    for i, (name, a, b, label) in enumerate(scatter.points):
        tip = f"{name}, {label}: {scatter.x} {a:.4g}, {scatter.y} {b:.4g}"
        parts.append(series(name, [point(x(a), y(b), styles[name], tip, str(i))]))
    return chart(scatter.title, parts)


def maps_svg(maps: Maps, panel: str) -> Markup:
    """Return one map: points without axes, which would have no meaning."""
    size = 360
    points = maps.panels[panel]
    low, high = points.min(axis=0), points.max(axis=0)
    placed = 10 + (points - low) / (high - low).clip(1e-9) * (size - 20)
    groups = []
    for k, name in enumerate(maps.names):
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in placed[maps.labels == k])
        path = Markup('<path class="dots c{}" d="{}"><title>{}</title></path>')
        groups.append(series(name, [path.format(k % N_COLORS, dots, safe(name))]))
    return Markup('<svg viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}</svg>').format(
        size, safe(f"{maps.title}: {panel}"), Markup("").join(groups)
    )
