"""Which results may be averaged: seeds of one row, and datasets of one task. Nothing else."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from cache.datasets.manifest import metric_of
from cache.errors import UserError
from fewshot.metrics import mean_interval
from fewshot.results.log import Result
from fewshot.run import Run

Point = tuple[int, float, float]  # shots, mean accuracy, half the width of its 95 % interval
ScatterPoint = tuple[str, float, float, str]  # series, x, y, and what to call it
Value = Callable[[Result], float]
Average = Callable[[Sequence[Sequence[Result]]], float]


UNTUNED = "Where a class has one image there is no tuning: the defaults."


class Task(NamedTuple):
    """A task; results of different tasks are never averaged."""

    setting: str
    model: str
    detail: str  # how unequal classes are, which are known, or what made features of new ones
    source: str  # that was learned from, where it is another dataset than the one tested

    def __str__(self) -> str:
        source = f" from {self.source}" if self.source else ""
        detail = f", {self.detail}" if self.detail else ""
        return f"{self.setting}{source}{detail}, {self.model}"


Row = Run  # without shots and seed: equal for results that may share a row
AnyRun = TypeVar("AnyRun", bound=Run)
Cells = dict[Row, dict[int, list[Result]]]  # row -> shots -> the results of its seeds


def task_of(row: Row) -> Task:
    """The task that the row's results did."""
    return Task(row.setting, row.model, row.detail, row.source)


def cells(runs: Iterable[AnyRun]) -> dict[Row, dict[int, list[AnyRun]]]:
    """The runs by row and number of shots, in the order in which rows first appear.

    Of several results of the same run the last counts. One shot cannot be cross-validated, so what
    the defaults reach there begins the row of `cv`.
    """
    latest = {one.run: one for one in runs}.values()
    validated = {one.row.anywhere() for one in latest if one.tune == "cv"}
    found: dict[Row, dict[int, list[AnyRun]]] = {}
    for one in latest:
        row, as_cv = one.row, replace(one.row, tune="cv")
        first = one.shots == 1 and one.tune == "none" and as_cv.anywhere() in validated
        found.setdefault(as_cv if first else row, {}).setdefault(one.shots, []).append(one)
    return {
        row: {k: sorted(by_shots[k], key=lambda one: one.seed) for k in sorted(by_shots)}
        for row, by_shots in found.items()
    }


def untuned(rows: Cells) -> tuple[str, ...]:
    """The note below a table of rows of which some begin with results that were not tuned."""
    for row, by_shots in rows.items():
        if row.tune != "none" and any(r.tune == "none" for rs in by_shots.values() for r in rs):
            return (UNTUNED,)
    return ()


def tasks(rows: Cells) -> dict[Task, Cells]:
    """The rows of each task."""
    found: dict[Task, Cells] = {}
    for row, by_shots in rows.items():
        found.setdefault(task_of(row), {})[row] = by_shots
    return found


def over_seeds(results: Sequence[Result], value: Value = lambda r: r.accuracy) -> Point:
    """The mean over the seeds of one cell, with its interval."""
    return (results[0].shots, *mean_interval([value(r) for r in results]))


def over_datasets(
    groups: Sequence[Sequence[Result]],
    datasets: Collection[str],
    value: Value = lambda r: r.accuracy,
) -> Point:
    """The mean over datasets of the means over seeds: one row of one task, at one number of shots.

    It has an interval, of the seeds' averages, where all datasets have the same seeds.

    Args:
        groups: For each dataset the results of its seeds.
        datasets: Which there have to be, neither more nor fewer.
        value: What is averaged.

    Raises:
        UserError: Results of different settings, or of anything else that must not be averaged;
            or of other datasets than these.
    """
    results = [r for group in groups for r in group]
    settings = {r.setting for r in results}
    if len(settings) > 1:
        raise UserError(
            f"an average over {' and '.join(sorted(settings))} means nothing; average each alone"
        )
    kinds = {(replace(r.row.anywhere(), tune=""), r.shots) for r in results}
    protocols = {r.tune for r in results}
    if len(kinds) > 1 or len(protocols) > 1:
        raise UserError(
            "an average is over datasets and seeds alone; these results also differ in method, "
            "model, shots, tuning or its settings; average each alone"
        )
    present = sorted(group[0].dataset for group in groups)
    if present != sorted(datasets):
        raise UserError(
            f"an average over {', '.join(present)} cannot stand for one over "
            f"{', '.join(sorted(datasets))}; run the missing ones"
        )
    shots = results[0].shots
    if len({tuple(r.seed for r in group) for group in groups}) == 1:
        return shots, *mean_interval(over_draws(groups, lambda some: average(some, value)))
    return shots, average(groups, value), math.nan


def average(groups: Iterable[Sequence[Result]], value: Value) -> float:
    """The mean over groups, each with the same weight, of the means within them."""
    means = [math.fsum(map(value, group)) / len(group) for group in groups]
    return math.fsum(means) / len(means)


def over_draws(groups: Sequence[Sequence[Result]], average: Average) -> list[float]:
    """The average of each seed's results, for the seeds that every dataset has.

    Args:
        groups: For each dataset the results of its seeds.
        average: The average of one seed's results, of each dataset one.
    """
    by_seed = [{r.seed: r for r in group} for group in groups]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    return [average([[here[seed]] for here in by_seed]) for seed in seeds]


def by_dataset(
    rows: Mapping[Row, Mapping[int, list[AnyRun]]],
) -> dict[Row, dict[int, dict[str, list[AnyRun]]]]:
    """Row without its dataset -> shots -> dataset -> the runs of its seeds."""
    found: dict[Row, dict[int, dict[str, list[AnyRun]]]] = {}
    for row, by_shots in rows.items():
        for shots, runs in by_shots.items():
            here = found.setdefault(row.anywhere(), {}).setdefault(shots, {})
            here[row.dataset] = runs  # of two stores of a dataset, the later
    return found


def labels(rows: Iterable[Row]) -> dict[Row, str]:
    """A label of each row in its task: the method, and its difference from others of it."""
    rows = list(rows)
    names = {}
    for row in rows:
        details = [f"{name}={value}" for name, value in row.fixed.items()]
        if row.blend != "auto":
            details.append(f"blend={row.blend}")
        if row.prompt_set:
            details.append(f"prompts {row.prompt_set}")
        alike = [r for r in rows if (r.dataset, r.method) == (row.dataset, row.method)]
        if len({r.n_views for r in alike}) > 1:
            details.append(f"{row.n_views} view" + "s" * (row.n_views != 1))
        if len({r.fingerprint for r in alike}) > 1:
            details.append(f"store {row.fingerprint[:6]}")
        names[row] = f"{row.method} ({', '.join(details)})" if details else row.method
    return names


def mean_per_class(result: Result) -> float:
    """Its mean per-class accuracy."""
    return result.per_class_accuracy


def shows_per_class(rows: Iterable[Row]) -> bool:
    """True if mean per-class accuracy is what is published of one of the datasets."""
    return any(metric_of(dataset) == "per-class" for dataset in {row.dataset for row in rows})


def datasets_of(rows: Mapping[Row, object]) -> list[str]:
    """The datasets, in the order in which they first appear."""
    return list(dict.fromkeys(row.dataset for row in rows))
