"""Plots of results, drawn without a display, as PNG or SVG by the path's suffix."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cache.files.atomic import replacing
from fewshot.results.groups import ScatterPoint

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"

PlotPoint = tuple[int, float, float]  # shots, mean accuracy, half the width of its interval


def accuracy_against_shots(
    curves: Mapping[str, Sequence[PlotPoint]],
    levels: Mapping[str, float],
    title: str,
    path: Path,
) -> None:
    """Write a plot of accuracy in percent against shots per class, on a doubling scale.

    Args:
        curves: Method -> its points; accuracies in 0..1, drawn with their intervals.
        levels: Methods that use no shots, drawn as dashed lines at their accuracy.
        title: Above the plot.
        path: Where to; folders are made.
    """
    figure, axes = _figure(title)
    for i, (name, points) in enumerate(curves.items()):
        shots, means, halves = zip(*points, strict=True)
        axes.errorbar(
            shots,
            [100 * mean for mean in means],
            yerr=[100 * half if half == half else 0.0 for half in halves],
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            capsize=3,
            label=name,
        )
    for i, (name, level) in enumerate(levels.items(), start=len(curves)):
        color = COLORS[i % len(COLORS)]
        axes.axhline(100 * level, color=color, linestyle="--", label=name)
    ticks = sorted({shots for points in curves.values() for shots, _, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(shots) for shots in ticks])
    axes.set_xlabel("shots per class")
    axes.set_ylabel("accuracy on the test split, %")
    axes.legend()
    _save(figure, path)


def scatter(
    points: Sequence[ScatterPoint], title: str, x: str, y: str, path: Path, *, log: bool = False
) -> None:
    """Write a plot of single points, each with its name beside it and a color per series.

    Args:
        points: What to draw where.
        title: Above the plot.
        x: What the x axis is.
        y: What the y axis is.
        path: Where to; folders are made.
        log: Draw the x axis logarithmic, with room for 0 at its left.
    """
    figure, axes = _figure(title)
    for i, series in enumerate(dict.fromkeys(name for name, *_ in points)):
        here = [point for point in points if point[0] == series]
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.scatter([p[1] for p in here], [p[2] for p in here], label=series, zorder=3, **style)  # type: ignore[arg-type]  # its stubs know no unpacked style
    for _, across, up, name in points:
        axes.annotate(name, (across, up), (5, 4), textcoords="offset points", fontsize=7)
    if log:
        smallest = min((p[1] for p in points if p[1] > 0), default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    _save(figure, path)


def class_maps(
    panels: Mapping[str, ArrayLike],
    labels: ArrayLike,
    names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Write maps of the same M points side by side, colored by class.

    Args:
        panels: Name -> (M, 2) coordinates.
        labels: (M,) ids of classes.
        names: Of the classes.
        title: Above them.
        path: Where to; folders are made.
    """
    figure = Figure(figsize=(5 * len(panels), 5.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    colors = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]  # a listed colormap has them
    of = np.asarray(labels)
    for i, (name, coordinates) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for k, one in enumerate(names):
            here = np.asarray(coordinates)[of == k]
            axes.scatter(here[:, 0], here[:, 1], s=7, color=colors[k % 10], label=one)
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(figure, path)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    """An SVG without a date, so that the same results give the same file."""
    form = "svg" if path.suffix == ".svg" else "png"
    stable = mpl.rc_context({"svg.hashsalt": "fewshot", "svg.fonttype": "none"})
    with replacing(path) as temporary, stable:
        figure.savefig(temporary, format=form, metadata={"Date": None} if form == "svg" else None)
