"""Accuracies averaged over seeds, against shots: as points, and as a table."""

from collections.abc import Mapping, Sequence
from itertools import chain

from fewshot.results.groups import (
    Cells,
    Point,
    Row,
    Value,
    cells,
    labels,
    mean_per_class,
    over_seeds,
    shows_per_class,
    untuned,
)
from fewshot.results.log import Result
from fewshot.run import ADAPTED, CLASS_GROUPS, LABELED, PARTS
from fewshot.sampling import shots_name
from fewshot.tables import Cell, Number, Table, text


def curves(results: Sequence[Result]) -> dict[Row, list[Point]]:
    """Accuracies in 0..1 averaged over seeds, for each row its points in order of shots."""
    return points(cells(results))


def points(rows: Cells, value: Value = lambda r: r.accuracy) -> dict[Row, list[Point]]:
    """For each row its points in order of shots, averaged over seeds."""
    return {row: [over_seeds(rs, value) for rs in by.values()] for row, by in rows.items()}


def accuracy_table(results: Sequence[Result]) -> str:
    """One line per dataset, model, method and tuning, one column per number of shots, as text.

    A mean over several seeds is followed by half the width of its 95 % interval (Student's t).
    Where results have accuracies of parts of the test split, each part has a line; where images
    may have several labels, mAP and each F1 have. Where mean per-class accuracy is what is
    published of a dataset, it has a column beside each.
    """
    rows = cells(results)
    all_shots = sorted({shots for found in rows.values() for shots in found})
    names = labels(rows)
    several_tasks = any(row.setting not in ("few-shot", "zero-shot") for row in rows)
    parted = any(_parts(found) for found in rows.values())
    doubled = shows_per_class(rows)
    lines = []
    for row, found in rows.items():
        task = " ".join(filter(None, (row.setting, row.source, row.detail)))
        first = [row.dataset, row.model, names[row], *([task] if several_tasks else []), row.tune]
        parts = _parts(found)
        whole = "H" if set(parts) - set(CLASS_GROUPS) else "all"
        for part in parts if "mAP" in parts else (*parts, whole):
            line = [over_seeds(group, _accuracy_of(part)) for group in found.values()]
            classes = [part] if parted else []
            columns = by_shots(line, all_shots)
            if doubled:
                means = [over_seeds(group, mean_per_class) for group in found.values()]
                columns += by_shots(means if part == whole else [], all_shots)
            lines.append((*first, *classes, *columns))
    header = ["dataset", "model", "method", *(["setting"] if several_tasks else []), "tuned by"]
    several = {"multi-label"} == {row.setting for row in rows}
    header += ["measure" if several else "classes"] if parted else []
    return text(Table("", (*header, *shots_header(all_shots, doubled)), lines, untuned(rows)))


def shots_header(all_shots: Sequence[int], doubled: bool) -> list[str]:
    """A column for each number of shots, and for mean per-class accuracy at each."""
    names = [*map(shots_name, all_shots)]
    return [*names, *(f"{name}, per class" for name in names if doubled)]


def class_table(result: Result, classnames: Sequence[str]) -> Table:
    """A line for each class of a result on images that may have several labels.

    Args:
        result: One with `by_class`.
        classnames: C names.
    """
    figures = result.by_class or {}
    header = ("class", *figures)
    lines: list[list[Cell]] = []
    for k, name in enumerate(classnames):
        values: list[Cell] = [name]
        for column, of_class in figures.items():
            value = of_class[k]
            whole = column == "test images"
            values.append("" if value is None else int(value) if whole else Number(100 * value))
        lines.append(values)
    return Table("Each class, in %", header, lines)


def _parts(found: Mapping[int, Sequence[Result]]) -> tuple[str, ...]:
    """The parts of the test split of which every result has an accuracy."""
    every = [set(result.accuracies) for group in found.values() for result in group]
    return tuple(
        part
        for part in dict.fromkeys((*chain(*PARTS.values()), *LABELED, *ADAPTED, *CLASS_GROUPS))
        if all(part in one for one in every)
    )


def _accuracy_of(part: str) -> Value:
    return lambda result: result.accuracies.get(part, result.accuracy)


def by_shots(line: Sequence[Point], all_shots: Sequence[int]) -> list[Cell]:
    """A cell for each number of shots, in percent; empty where the row has no point."""
    found = {shots: Number(100 * mean, 100 * half) for shots, mean, half in line}
    return [found.get(shots, "") for shots in all_shots]
