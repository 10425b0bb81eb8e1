"""The two drawings of the page: accuracies on a scale of 100, and the learning curve."""

import math
from collections.abc import Iterable
from html import escape

from fewshot.model_selection.learning_curve import LearningCurve

WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 48
DOT = "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"


def scale(
    accuracy: float, interval: tuple[float, float], marks: Iterable[tuple[str, float]]
) -> str:
    """An accuracy with its interval on a scale from 0 to 100, others marked beside it.

    Args:
        accuracy: In 0..1.
        interval: Around it.
        marks: Names and shares of what to compare with.
    """
    low, high = interval
    # Each mark has a line of its own, and its label moves to the left of it as the share grows, so
    # that labels neither meet nor leave the scale.
    others = "".join(
        f'<div class="other"><i style="left:{100 * share:.1f}%"></i>'
        f'<span style="left:{100 * share:.1f}%;transform:translateX({-100 * share:.0f}%)">'
        f"{escape(name)} {100 * share:.0f}</span></div>"
        for name, share in marks
    )
    return (
        '<div class="scale" aria-hidden="true"><div class="track">'
        f'<span class="interval" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%">'
        f'</span><span class="dot" style="left:{100 * accuracy:.1f}%"></span></div>{others}</div>'
    )


def bar(accuracy: float, interval: tuple[float, float]) -> str:
    """The same in a cell of a table."""
    low, high = (100 * share for share in interval)
    return (
        '<svg class="bar" viewBox="-5 0 110 12" aria-hidden="true">'
        '<path class="grid" d="M0 6H100"/>'
        f'<path class="range" d="M{low:.1f} 6H{high:.1f}"/>'
        f'<circle class="dot" cx="{100 * accuracy:.1f}" cy="6" r="3.2"/></svg>'
    )


def curve_svg(curve: LearningCurve, present: int, level: float | None) -> str:
    """Accuracy against labeled photos: measured, predicted (dashed), and without any (level).

    Args:
        curve: At least one point.
        present: How many photos are labeled now.
        level: Accuracy without labels, 0..1.
    """
    measured = [
        (p.images, p.accuracy, (p.accuracy - p.spread, p.accuracy + p.spread)) for p in curve.points
    ]
    predicted = [(float(p.times * present), p.accuracy, p.interval) for p in curve.forecasts]
    every = [*measured, *predicted]
    spans = [value for _, _, ends in every for value in ends] + ([] if level is None else [level])
    low, high = max(0.0, min(spans)), min(1.0, max(spans))
    room = max(0.05 * (high - low), 0.01)
    low, high = max(0.0, low - room), min(1.0, high + room)
    first, last = (math.log2(images) for images in (every[0][0], max(e[0] for e in every)))

    def x(images: float) -> float:
        inner = WIDTH - LEFT - RIGHT - 40
        return LEFT + 20 + inner * (math.log2(images) - first) / max(last - first, 1)

    def y(share: float) -> float:
        kept = min(max(share, low), high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - kept) / (high - low)

    parts = []
    for tick in _ticks(100 * low, 100 * high):
        at = y(tick / 100)
        parts.append(
            f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/><text class="tick" '
            f'x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for images, _, _ in every:
        parts.append(
            f'<text class="tick" x="{x(images):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{images:,.0f}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="name" x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f'labeled photos</text><text class="name" transform="translate(14 {middle}) rotate(-90)" '
        'text-anchor="middle">right, in 100</text>'
    )
    if level is not None:
        parts.append(f'<path class="line level c6" d="M{LEFT} {y(level):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{y(level) - 6:.1f}" text-anchor="end">'
            "class names alone</text>"
        )
    parts.append(_line([(x(n), y(a)) for n, a, _ in measured], "line c0"))
    if predicted:
        parts.append(
            _line([(x(n), y(a)) for n, a, _ in (measured[-1], *predicted)], "line expected c1")
        )
    for points, color, what in ((measured, 0, "measured"), (predicted, 1, "expected")):
        for images, share, (least, most) in points:
            tip = f"{images:,.0f} labeled photos, {what}: {100 * share:.1f} in 100 right"
            if most > least:
                tip += f" ({100 * least:.1f} to {100 * most:.1f})"
            a, b = x(images), y(share)
            parts.append(
                f'<path class="whisker c{color}" d="M{a:.1f} {y(least):.1f}V{y(most):.1f}"/>'
                f'<g class="point" role="img" tabindex="-1" aria-label="{escape(tip)}" '
                f'data-column="{images:.0f}" data-x="{a:.1f}" data-y="{b:.1f}" '
                f'transform="translate({a:.1f} {b:.1f})">'
                f'<path class="mark c{color}" d="{DOT}"/></g>'
            )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="Accuracy against labeled photos">{"".join(parts)}</svg>'
    )


def _line(places: Iterable[tuple[float, float]], style: str) -> str:
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    return f'<path class="{style}" d="M{path}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, some five of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
