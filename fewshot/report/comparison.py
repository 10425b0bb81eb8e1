"""The sections across tasks: ours beside published figures, and residuals beside difficulty."""

from collections.abc import Iterator, Mapping, Sequence

from cache.errors import count
from fewshot.report import published
from fewshot.report.class_groups import base_new_averages, mean_h
from fewshot.report.content import Scatter, Section
from fewshot.report.published import Figure, Key
from fewshot.results.groups import Cells, Row, by_dataset, labels, over_datasets, over_seeds
from fewshot.results.log import Result
from fewshot.tables import Cell, Number, Table

HEADER = (
    "dataset", "setting", "model", "method", "shots", "classes", "ours", "published",
    "difference", "source", "where protocols differ",
)  # fmt: skip

Ours = tuple[str, str, float, float]  # dataset, part, accuracy, half its interval


def published_section(rows: Cells, figures: Mapping[Key, Figure]) -> Section:
    """Ours beside what was published of the same method, model, setting, shots and dataset."""
    names = labels(rows)
    lines: list[list[Cell]] = []
    sources: dict[str, int] = {}
    known: dict[str, bool] = {}
    for row, shots, group in _cells(rows):
        what = f"{row.method} on {row.dataset}, {row.model}, {row.setting}"
        known.setdefault(what, False)
        for dataset, part, accuracy, half in _ours(row, group):
            line = _line(
                row, names[row], shots, dataset, part, accuracy, half, group, figures, sources
            )
            if line is not None:
                lines.append(line)
                known[what] = True
    averaged = by_dataset(rows)
    for row, by_shots in averaged.items():
        for shots, here in by_shots.items():
            for dataset, part, accuracy, half in _our_averages(row, here):
                results = [r for group in here.values() for r in group]
                name = labels(averaged)[row]
                line = _line(
                    row, name, shots, dataset, part, accuracy, half, results, figures, sources
                )
                if line is not None:
                    lines.append(line)
    made = Section("Ours beside published figures")
    made.notes.append(
        "Accuracies in %, differences in points: ours less theirs. A figure is the authors' own "
        "where there is one. A difference within our interval says nothing, and where protocols "
        "differ a difference may be theirs rather than the method's."
    )
    if lines:
        notes = tuple(f"[{number}] {source}" for source, number in sources.items())
        made.blocks["published"] = Table("Ours and published", HEADER, lines, notes)
    else:
        made.notes.append("No published figure here is of the same as any of these results.")
    without = [what for what, matched in known.items() if not matched]
    if without and lines:
        more = f"; and {len(without) - 12} more" if len(without) > 12 else ""
        made.notes.append(f"No figure is known here for: {'; '.join(without[:12])}{more}.")
    return made


def _cells(rows: Cells) -> Iterator[tuple[Row, int, list[Result]]]:
    for row, by_shots in rows.items():
        for shots, group in by_shots.items():
            yield row, shots, group


def _ours(row: Row, group: Sequence[Result]) -> Iterator[Ours]:
    """Our accuracies of one cell: one, or from base to new three."""
    _, mean, half = over_seeds(group)
    if row.setting == "base-to-new":
        for part in ("base", "new"):
            _, value, width = over_seeds(group, lambda r, part=part: r.accuracies[part])  # type: ignore[misc]  # mypy infers no lambda with a default
            yield row.dataset, part, value, width
        mean = mean_h(group)
    yield row.dataset, "accuracy", mean, half


def _our_averages(row: Row, here: Mapping[str, list[Result]]) -> Iterator[Ours]:
    """Our averages, where there is a result on every dataset of the benchmark."""
    benchmark = published.VARIANTS if row.setting == "domain-generalization" else published.ELEVEN
    if not set(benchmark) <= set(here):
        return
    groups = [here[dataset] for dataset in benchmark]
    if row.setting == "base-to-new":
        base, new, of_averages, average = base_new_averages(groups, benchmark)
        nan = float("nan")
        yield "average", "base", base, nan
        yield "average", "new", new, nan
        yield "average", "accuracy", of_averages, nan
        yield "mean_of_harmonic_means", "accuracy", average, nan
    else:
        _, mean, half = over_datasets(groups, benchmark)
        yield "average", "accuracy", mean, half


def _line(
    row: Row, name: str, shots: int, dataset: str, part: str, accuracy: float, half: float,
    group: Sequence[Result], figures: Mapping[Key, Figure], sources: dict[str, int],
) -> list[Cell] | None:  # fmt: skip
    model = published.model_name(row.model)
    if model is None or row.synthesized is not None:
        return None
    method = published.method_name(row.method)
    figure = figures.get((method, model, row.setting, shots, dataset, part))
    if figure is None:
        return None
    classes = part if part != "accuracy" else "H" if row.setting == "base-to-new" else "all"
    why = published.differences(
        figure,
        tune=group[0].tune,
        n_views=row.n_views,
        seeds={r.seed for r in group},
        text=all(r.text_recipe is not None for r in group),
    )
    number = sources.setdefault(_source(figure), len(sources) + 1)
    return [
        dataset.replace("_", " ") if dataset in published.AVERAGES else dataset,
        row.setting, row.model, f"{name}, {row.tune}" if row.tune != "none" else name, shots,
        classes, Number(100 * accuracy, 100 * half), Number(100 * figure.accuracy, digits=2),
        Number(100 * (accuracy - figure.accuracy), signed=True), f"[{number}]", "; ".join(why),
    ]  # fmt: skip


def _source(figure: Figure) -> str:
    """Who says it and how the figure came about, as one note."""
    by = "the method's authors" if figure.by == "authors" else "others than the method's authors"
    sure = "read off a figure" if figure.confidence == "digitised" else figure.confidence
    return f"{figure.source} ({figure.where}), by {by}; confidence: {sure}. {figure.protocol.note}"


def residual_section(rows: Cells, zero_shot: Cells) -> Section | None:
    """How far residuals moved, beside how hard a transfer the dataset is; None without residuals.

    The relative transfer difficulty is the accuracy of guessing, 1 / C, over zero-shot accuracy
    (TaskRes, section 5.5, https://arxiv.org/abs/2211.10277).
    """
    guess = {
        (row.dataset, row.model): over_seeds(by[0])[1]
        for row, by in zero_shot.items()
        if 0 in by and not row.prompt_set and not row.fixed
    }
    names = labels(rows)
    measured = [
        (row, shots, [r for r in group if "residual_size" in r.measures])
        for row, shots, group in _cells(rows)
    ]
    measured = [(row, shots, group) for row, shots, group in measured if group]
    if not measured:
        return None
    made = Section("Residual size and transfer difficulty")
    made.notes.append(
        "Relative transfer difficulty is the accuracy of random guessing over that of zero-shot "
        "CLIP (TaskRes, section 5.5): the higher, the less CLIP knows of the task. Residual size "
        "is the mean over classes of the residual's norm relative to what it was added to."
    )
    lines: list[list[Cell]] = []
    series: dict[str, list[tuple[str, float, float, str]]] = {}
    lacking = set()
    for row, shots, group in measured:
        _, size, half = over_seeds(group, lambda r: r.measures["residual_size"])
        zero = guess.get((row.dataset, row.model))
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
    header = (
        "dataset", "setting", "model", "method", "tuned by", "shots", "zero-shot",
        "relative difficulty", "residual size",
    )  # fmt: skip
    made.blocks["residuals"] = Table("Learned residuals", header, lines)
    for label, points in series.items():
        if len({name for *_, name in points}) > 1:
            made.blocks[f"residuals-{label}"] = Scatter(
                f"{label}{_correlation(points)}", "relative transfer difficulty", "residual size",
                points,
            )  # fmt: skip
    if lacking:
        made.notes.append(f"No zero-shot result here for {', '.join(sorted(lacking))}.")
    return made


def _correlation(points: Sequence[tuple[str, float, float, str]]) -> str:
    """Spearman's, from four datasets on."""
    if len(points) < 4:
        return ""
    from scipy.stats import spearmanr

    _, difficulty, size, _ = zip(*points, strict=True)
    return f"; Spearman's rank correlation {float(spearmanr(difficulty, size).statistic):+.2f}"
