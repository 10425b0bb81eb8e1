"""Plots of results, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cache.atomic import replacing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"

Point = tuple[int, float, float]  # shots, mean accuracy, half the width of its interval


def accuracy_against_shots(
    curves: Mapping[str, Sequence[Point]],
    levels: Mapping[str, float],
    title: str,
    path: Path,
) -> None:
    """Write a PNG of accuracy in percent against shots per class, on a doubling scale.

    Args:
        curves: Method -> its points; accuracies in 0..1, drawn with their intervals.
        levels: Methods that use no shots, drawn as dashed lines at their accuracy.
        title: Above the plot.
        path: Where to; folders are made.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        shots, means, halves = zip(*points, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(
            shots,
            [100 * mean for mean in means],
            yerr=[100 * half if half == half else 0.0 for half in halves],
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            capsize=3,
            label=name,
        )
    for i, (name, level) in enumerate(levels.items(), start=len(curves)):
        colour = COLOURS[i % len(COLOURS)]
        axes.axhline(100 * level, color=colour, linestyle="--", label=name)
    ticks = sorted({shots for points in curves.values() for shots, _, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(shots) for shots in ticks])
    axes.set_xlabel("shots per class")
    axes.set_ylabel("accuracy on the test split, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
