"""The section of one task: accuracies, their averages, curves, costs and hyper-parameters."""

from collections.abc import Iterator

from cache.errors import count
from fewshot.report.class_groups import (
    base_new,
    base_new_average,
    generalized,
    imbalanced,
    imbalanced_average,
    open_set,
)
from fewshot.report.content import Curves, Section
from fewshot.report.cost import cost, cost_scatters, hyperparameters
from fewshot.report.lines import (
    INTERVAL,
    Incomplete,
    average_heads,
    count_seeds,
    heads,
    missing,
    over,
    series_names,
)
from fewshot.results.groups import (
    Cells,
    Point,
    Task,
    by_dataset,
    datasets_of,
    mean_per_class,
    over_datasets,
    over_seeds,
    untuned,
)
from fewshot.results.summaries import by_shots, points, shots_header
from fewshot.run import plain_setting
from fewshot.tables import Cell, Number, Table


def section(task: Task, rows: Cells, zero_shot: Cells, doubled: bool) -> Section:
    """All there is to say of a task.

    Args:
        task: Which.
        rows: Its results.
        zero_shot: Rows of zero-shot CLIP, drawn as levels on the same dataset and model.
        doubled: Show mean per-class accuracy beside the accuracy.
    """
    made = Section(str(task))
    kind = plain_setting(task.setting)
    made.blocks["accuracy"] = _accuracy(kind, rows, doubled)
    if len(datasets_of(rows)) > 1:
        made.blocks["average"] = _average(kind, rows, doubled)
    if kind in ("few-shot", "base-to-new", "imbalanced"):
        levels = zero_shot if kind != "base-to-new" else {}
        for curves in _curves(rows, levels):
            made.blocks[f"curves-{curves.title}"] = curves
    for title, scatter in cost_scatters(rows):
        made.blocks[title] = scatter
    made.blocks["cost"] = cost(rows)
    chosen = hyperparameters(rows)
    if chosen.rows:
        made.blocks["hyper-parameters"] = chosen
    return made


def _accuracy(kind: str, rows: Cells, doubled: bool) -> Table:
    """The table of a kind of task, a line for each dataset and method."""
    match kind:
        case "base-to-new":
            return base_new(rows)
        case "generalized":
            return generalized(rows)
        case "open-set":
            return open_set(rows)
        case "imbalanced":
            return imbalanced(rows)
        case "multi-label":
            return _by_shots(rows, title="mAP, the mean over classes of average precision")
        case _:
            return _by_shots(rows, doubled)


def _average(kind: str, rows: Cells, doubled: bool) -> Table:
    """The same on average over datasets."""
    match kind:
        case "base-to-new":
            return base_new_average(rows)
        case "imbalanced":
            return imbalanced_average(rows)
        case "multi-label":
            return _average_by_shots(rows, title="mAP, average over datasets")
        case _:
            return _average_by_shots(rows, doubled)


def _by_shots(rows: Cells, doubled: bool = False, title: str = "Accuracy") -> Table:
    lines, beside = points(rows), points(rows, mean_per_class) if doubled else {}
    all_shots = sorted({shots for line in lines.values() for shots, _, _ in line})
    return Table(
        title,
        ("dataset", "method", "tuned by", *shots_header(all_shots, doubled), "seeds"),
        [
            (
                *head,
                *by_shots(lines[row], all_shots),
                *(by_shots(beside[row], all_shots) if doubled else ()),
                count_seeds(list(rows[row].values())),
            )
            for row, head in heads(rows)
        ],
        (INTERVAL, *untuned(rows)),
    )


def _average_by_shots(
    rows: Cells, doubled: bool = False, title: str = "Average over datasets"
) -> Table:
    datasets = datasets_of(rows)
    incomplete = Incomplete(datasets)
    all_shots = sorted({shots for by in rows.values() for shots in by})
    lines: list[list[Cell]] = []
    for name, tune, found in average_heads(rows):
        line: list[Cell] = [name, tune]
        beside: list[Cell] = []
        for shots in all_shots:
            here = found.get(shots)
            instead = "" if here is None else incomplete.cell(f"{name} ({tune})", shots, here)
            if here is None or instead is not None:
                line.append(instead or "")
                beside.append(instead or "")
                continue
            groups = list(here.values())
            line.append(_number(over_datasets(groups, datasets)))
            beside.append(_number(over_datasets(groups, datasets, mean_per_class)))
        line += beside if doubled else []
        lines.append([*line, count_seeds([g for here in found.values() for g in here.values()])])
    header = ("method", "tuned by", *shots_header(all_shots, doubled), "seeds")
    notes = (INTERVAL, over(datasets), *incomplete.notes())
    return Table(title, header, lines, notes)


def _number(point: Point) -> Number:
    _, mean, half = point
    return Number(100 * mean, 100 * half)


def _curves(rows: Cells, zero_shot: Cells) -> Iterator[Curves]:
    """Accuracy against shots on each dataset, and on average; nothing where shots do not vary."""
    if len({shots for by in rows.values() for shots in by if shots}) < 2:
        return
    names = series_names(rows)
    lines = points(rows)
    datasets = datasets_of(rows)
    models = {row.model for row in rows}
    levels = {
        row.dataset: by[0]
        for row, by in zero_shot.items()
        if row.model in models and 0 in by and not row.prompt_set and not row.fixed
    }
    for dataset in datasets:
        series = {names[row]: line for row, line in lines.items() if row.dataset == dataset}
        learned = {name: [p for p in line if p[0]] for name, line in series.items()}
        level = {name: line[0][1] for name, line in series.items() if not line[0][0]}
        if dataset in levels:
            level["zero-shot"] = over_seeds(levels[dataset])[1]
        yield Curves(dataset, {name: line for name, line in learned.items() if line}, level)
    if len(datasets) < 2:
        return
    averages = {}
    for row, found in by_dataset(rows).items():
        complete = [
            over_datasets(list(here.values()), datasets)
            for shots, here in found.items()
            if shots and not missing(datasets, here)
        ]
        if complete:
            averages[row] = complete
    if averages:
        shown = series_names(averages)
        level = {}
        if all(dataset in levels for dataset in datasets):
            groups = [levels[dataset] for dataset in datasets]
            level["zero-shot"] = over_datasets(groups, datasets)[1]
        title = f"average of {count(len(datasets), 'dataset')}"
        yield Curves(title, {shown[row]: line for row, line in averages.items()}, level)
