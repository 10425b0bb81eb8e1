"""Charts as inline SVG: axes, grids and points that carry their values; colors come from the page.

Every function returns markup in which text is escaped; `Markup.format` and `html.safe` see to it.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from fewshot.html import safe

WIDTH, HEIGHT = 560, 350
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 46
N_COLORS = 10
LETTER = 11.5  # width of a letter where the page prints ticks largest, on a phone

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


def chart(title: str, parts: Iterable[Markup]) -> Markup:
    """Return a chart of the parts; the page's script shows the values of its points."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, safe(title), Markup("").join(parts))


def series(name: str, parts: Iterable[Markup]) -> Markup:
    """Return the parts as one series, which the legend shows and hides."""
    return Markup('<g class="series" data-series="{}">{}</g>').format(
        safe(name), Markup("").join(parts)
    )


def line(points: Sequence[tuple[float, float]], style: str, dash: str = "") -> Markup:
    """Return a line through points, of classes of the page's style."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
    return Markup('<path class="{}"{} d="M{}"/>').format(style, dashes, path)


def level(y: float, style: str) -> Markup:
    """Return a horizontal line across the chart."""
    return Markup('<path class="{}" d="M{} {:.1f}H{}"/>').format(style, LEFT, y, WIDTH - RIGHT)


def whisker(x: float, low: float, high: float, color: int) -> Markup:
    """Return the interval of a point."""
    return Markup('<path class="whisker c{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
        color % N_COLORS, x, low, high
    )


def point(x: float, y: float, k: int, tip: str, column: str, mark: int | None = None) -> Markup:
    """Return a point.

    Args:
        x: Where it is.
        y: Where it is.
        k: The number of its color, and of its mark.
        tip: Its values in words.
        column: Points of the same column are shown together.
        mark: The number of its mark where that is not k.
    """
    return Markup(
        '<g class="point" role="img" tabindex="-1" aria-label="{}" data-column="{}" '
        'data-x="{x:.1f}" data-y="{y:.1f}" transform="translate({x:.1f} {y:.1f})">'
        '<path class="mark c{}" d="{}"/></g>'
    ).format(
        safe(tip), safe(column), k % N_COLORS, MARKS[(k if mark is None else mark) % len(MARKS)],
        x=x, y=y,
    )  # fmt: skip


def sample(k: int, *, is_level: bool = False) -> Markup:
    """Return the sample of a series in a legend."""
    return Markup(
        '<svg class="sample" viewBox="0 0 28 14" aria-hidden="true">'
        '<path class="line {color}{}" d="M0 7H28"/>'
        '<path class="mark {color}" transform="translate(14 7)" d="{}"/></svg>'
    ).format(" level" if is_level else "", MARKS[k % len(MARKS)], color=f"c{k % N_COLORS}")


def grid(ticks: Sequence[float], y: Scale) -> list[Markup]:
    """Return horizontal lines with their values."""
    return [
        Markup(
            '<path class="grid" d="M{} {:.1f}H{}"/>'
            '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>'
        ).format(LEFT, y(tick), WIDTH - RIGHT, LEFT - 7, y(tick) + 4, tick)
        for tick in ticks
    ]


def x_labels(labels: Sequence[tuple[float, str]], *, lines: bool = False) -> list[Markup]:
    """Return the labels of the x axis that have room, the first and the last before the others.

    Args:
        labels: Where and what, from left to right.
        lines: Draw a vertical line at each.
    """
    drawn = []
    if lines:
        drawn = [
            Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP, HEIGHT - BOTTOM)
            for x, _ in labels
        ]
    return drawn + [
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x, HEIGHT - BOTTOM + 17, safe(text)
        )
        for x, text in with_room(labels)
    ]


def with_room(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return the labels that do not overlap, in the order of the first, the last, the others."""
    kept: list[tuple[float, str]] = []
    for place, text in (*labels[:1], *labels[:0:-1]):
        x = min(place, WIDTH - len(text) * LETTER / 2)  # or the end of the last one is cut off
        if all(abs(x - at) > (len(text) + len(other) + 1) * LETTER / 2 for at, other in kept):
            kept.append((x, text))
    return sorted(kept)


def axis_names(x: str, y: str) -> list[Markup]:
    """Return the names of both axes."""
    return [
        Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, safe(x)
        ),
        Markup(
            '<text class="name" transform="translate(0 {}) rotate(-90)" text-anchor="middle"'
            ' dominant-baseline="text-before-edge">{}</text>'  # whole at any size of letters
        ).format((TOP + HEIGHT - BOTTOM) / 2, safe(y)),
    ]


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Return the scale that takes low to start and high to end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def axis(low: float, high: float, start: float, end: float) -> tuple[list[float], Scale]:
    """Return round ticks, and a scale on which the values have a little room."""
    room = 0.06 * (high - low) or max(abs(high) * 0.05, 0.5)
    low, high = low - room, high + room
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [round(tick, 10) for tick in ticks], linear(low, high, start, end)


def log_axis(values: Sequence[float]) -> tuple[list[float], Scale]:
    """Return powers of ten, and a scale that has 0 at its left where it occurs."""
    positive = [value for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)))
    high = max(math.ceil(math.log10(max(positive))), low + 1)
    zero = any(value <= 0 for value in values)
    start = LEFT + (60 if zero else 14)
    logs = linear(low, high, start, WIDTH - RIGHT - 14)
    ticks = ([0.0] if zero else []) + [10.0**n for n in range(low, high + 1)]
    return ticks, lambda value: LEFT + 14 if value <= 0 else logs(math.log10(value))
