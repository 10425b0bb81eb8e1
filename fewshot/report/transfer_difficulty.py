"""The section of how far residuals moved, beside how hard a transfer their dataset is.

The relative transfer difficulty is the accuracy of guessing, 1 / C, over zero-shot accuracy
(TaskRes, section 5.5, https://arxiv.org/abs/2211.10277).
"""

from collections.abc import Sequence

from cache.errors import count
from fewshot.report.content import Scatter, Section
from fewshot.results.groups import Cells, ScatterPoint, labels, over_seeds
from fewshot.tables import Cell, Number, Table

HEADER = (
    "dataset", "setting", "model", "method", "tuned by", "shots", "zero-shot",
    "relative difficulty", "residual size",
)  # fmt: skip
MEANING = (
    "Relative transfer difficulty is the accuracy of random guessing over that of zero-shot "
    "CLIP (TaskRes, section 5.5): the higher, the less CLIP knows of the task. Residual size "
    "is the mean over classes of the residual's norm relative to what it was added to."
)


def residual_section(rows: Cells, zero_shot: Cells) -> Section | None:
    """A table, and a drawing for each method on several datasets; None without residuals."""
    known, names = _zero_shot_accuracies(zero_shot), labels(rows)
    measured = [
        (row, shots, sized)
        for row, by_shots in rows.items()
        for shots, group in by_shots.items()
        if (sized := [r for r in group if "residual_size" in r.measures])
    ]
    if not measured:
        return None
    made = Section("Residual size and transfer difficulty")
    made.notes.append(MEANING)
    lines: list[list[Cell]] = []
    series: dict[str, list[ScatterPoint]] = {}
    lacking = set()
    for row, shots, group in measured:
        _, size, half = over_seeds(group, lambda r: r.measures["residual_size"])
        zero = known.get((row.dataset, row.model))
        cells: list[Cell] = ["", ""]
        if zero:
            difficulty = 1 / group[0].n_classes / zero
            cells = [Number(100 * zero), Number(difficulty, digits=4)]
            label = f"{names[row]}, {count(shots, 'shot')}, {row.setting}, {row.model}"
            series.setdefault(label, []).append((label, difficulty, size, row.dataset))
        else:
            lacking.add(f"{row.dataset} with {row.model}")
        lines.append(
            [row.dataset, row.setting, row.model, names[row], row.tune, shots, *cells,
             Number(size, half, digits=4)]
        )  # fmt: skip
    made.blocks["residuals"] = Table("Learned residuals", HEADER, lines)
    for label, points in series.items():
        if len({name for *_, name in points}) > 1:
            made.blocks[f"residuals-{label}"] = Scatter(
                f"{label}{_correlation(points)}", "relative transfer difficulty", "residual size",
                points,
            )  # fmt: skip
    if lacking:
        made.notes.append(f"No zero-shot result here for {', '.join(sorted(lacking))}.")
    return made


def _zero_shot_accuracies(zero_shot: Cells) -> dict[tuple[str, str], float]:
    """Dataset and model -> the accuracy by the usual prompts."""
    return {
        (row.dataset, row.model): over_seeds(by[0])[1]
        for row, by in zero_shot.items()
        if 0 in by and not row.prompt_set and not row.fixed
    }


def _correlation(points: Sequence[ScatterPoint]) -> str:
    """Spearman's, from four datasets on."""
    if len(points) < 4:
        return ""
    from scipy.stats import spearmanr

    _, difficulty, size, _ = zip(*points, strict=True)
    return f"; Spearman's rank correlation {float(spearmanr(difficulty, size).statistic):+.2f}"
