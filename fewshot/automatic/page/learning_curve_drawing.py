"""The learning curve as a drawing."""

import math

from markupsafe import Markup

from cache.errors import count
from fewshot.model_selection.learning_curve import LearningCurve
from fewshot.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
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
    point,
    whisker,
    x_labels,
)

MEASURED, EXPECTED = 0, 1  # numbers of colors


def curve_svg(curve: LearningCurve, present: int, zero_shot: float | None) -> Markup:
    """Return accuracy against labeled photos: measured, forecast (dashed), and zero-shot.

    Args:
        curve: At least one point.
        present: How many photos are labeled now.
        zero_shot: Accuracy without labels, 0..1.
    """
    measured = [
        (p.images, p.accuracy, (p.accuracy - p.spread, p.accuracy + p.spread)) for p in curve.points
    ]
    expected = [(float(p.times * present), p.accuracy, p.interval) for p in curve.credible]
    every = [*measured, *expected]
    spans = [value for _, _, ends in every for value in ends]
    spans += [] if zero_shot is None else [zero_shot]
    low, high = max(0.0, min(spans)), min(1.0, max(spans))
    ticks, to_y = axis(100 * low, 100 * high, HEIGHT - BOTTOM, TOP)
    first, last = (math.log2(images) for images in (every[0][0], max(e[0] for e in every)))
    to_x = linear(first, max(last, first + 1), LEFT + 20, WIDTH - RIGHT - 20)

    def x(images: float) -> float:
        return to_x(math.log2(images))

    def y(share: float) -> float:
        return to_y(100 * min(max(share, low), high))

    parts = grid([tick for tick in ticks if 0 <= tick <= 100], to_y)
    parts += x_labels([(x(images), f"{images:,.0f}") for images, _, _ in every])
    parts += axis_names("labeled photos", "right, in 100")
    if zero_shot is not None:
        parts.append(level(y(zero_shot), "line level c6"))
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                WIDTH - RIGHT, y(zero_shot) - 6, "class names alone"
            )
        )
    parts.append(line([(x(n), y(a)) for n, a, _ in measured], f"line c{MEASURED}"))
    if expected:
        dashed = [(x(n), y(a)) for n, a, _ in (measured[-1], *expected)]
        parts.append(line(dashed, f"line expected c{EXPECTED}"))
    for points, color, kind in ((measured, MEASURED, "measured"), (expected, EXPECTED, "expected")):
        for images, share, (least, most) in points:
            tip = f"{count(round(images), 'labeled photo')}, {kind}: {100 * share:.1f} in 100 right"
            if most > least:
                tip += f" ({100 * least:.1f} to {100 * most:.1f})"
            parts.append(whisker(x(images), y(least), y(most), color))
            parts.append(point(x(images), y(share), color, tip, f"{images:.0f}", mark=0))
    return chart("Accuracy against labeled photos", parts)
