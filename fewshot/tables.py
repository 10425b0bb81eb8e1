"""Results as text: accuracy in percent against shots, means over seeds with their intervals."""

from collections.abc import Sequence
from math import isnan

from fewshot.metrics import mean_interval
from fewshot.results import Result

Point = tuple[int, float, float]  # shots, mean accuracy, half the width of its 95 % interval
Row = tuple[str, str, str, str]  # dataset, model, method, tuning: what may share a row


def curves(results: Sequence[Result]) -> dict[Row, list[Point]]:
    """Accuracies in 0..1 averaged over seeds, for each row its points in order of shots.

    What differs in dataset, model, method, or in how it was tuned, is never averaged. One shot
    cannot be cross-validated, so what the defaults reach there begins the row of `cv`.
    """
    validated = {(r.dataset, r.model, r.method) for r in results if r.tune == "cv"}
    seeds: dict[Row, dict[int, list[float]]] = {}
    for r in results:
        first = r.shots == 1 and r.tune == "none" and (r.dataset, r.model, r.method) in validated
        row = (r.dataset, r.model, r.method, "cv" if first else r.tune)
        seeds.setdefault(row, {}).setdefault(r.shots, []).append(r.accuracy)
    return {
        row: [(shots, *mean_interval(values)) for shots, values in sorted(by_shots.items())]
        for row, by_shots in seeds.items()
    }


def accuracy_table(results: Sequence[Result]) -> str:
    """One line per dataset, model, method and tuning, one column per number of shots.

    A mean over several seeds is followed by half the width of its 95 % interval (Student's t).
    """
    rows = curves(results)
    all_shots = sorted({shots for points in rows.values() for shots, _, _ in points})
    header = ["dataset", "model", "method", "tuned by", *(_shots(shots) for shots in all_shots)]
    lines = [header]
    for row, points in rows.items():
        cells = {shots: _percent(mean, half) for shots, mean, half in points}
        lines.append([*row, *(cells.get(shots, "") for shots in all_shots)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _shots(shots: int) -> str:
    return {0: "no shots", 1: "1 shot"}.get(shots, f"{shots} shots")


def _percent(mean: float, half: float) -> str:
    return f"{100 * mean:.1f}" if isnan(half) else f"{100 * mean:.1f} ± {100 * half:.1f}"
