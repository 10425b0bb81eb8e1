"""Which results may be averaged: seeds of one row, and datasets of one task. Nothing else."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from cache.errors import UserError
from cache.identity import canonical_json
from fewshot.metrics import mean_interval
from fewshot.results.log import Result

Point = tuple[int, float, float]  # shots, mean accuracy, half the width of its 95 % interval
Value = Callable[[Result], float]

TRANSFERS = ("domain-generalization", "cross-dataset")


class Task(NamedTuple):
    """What was to be done; results of different tasks are never averaged."""

    setting: str
    model: str
    imbalance: str
    source: str  # that was learned from, where it is another dataset than the one tested

    def __str__(self) -> str:
        source = f" from {self.source}" if self.source else ""
        imbalance = f", {self.imbalance}" if self.imbalance else ""
        return f"{self.setting}{source}{imbalance}, {self.model}"


class Row(NamedTuple):
    """What may share a row: the same in all but the number of shots and the seed."""

    dataset: str
    model: str
    method: str
    tune: str
    setting: str
    imbalance: str
    source: str
    fixed: tuple[tuple[str, str], ...]
    prompt_set: str
    n_views: int
    fingerprint: str

    @property
    def task(self) -> Task:
        """What the row's results did."""
        return Task(self.setting, self.model, self.imbalance, self.source)

    def anywhere(self) -> "Row":
        """The same on no dataset in particular: equal for rows that an average may be over."""
        return self._replace(dataset="", fingerprint="")


Cells = dict[Row, dict[int, list[Result]]]  # row -> shots -> the results of its seeds


def row_of(result: Result) -> Row:
    """The row that the result belongs in."""
    transfer = result.setting.removeprefix("transductive ") in TRANSFERS
    return Row(
        dataset=result.dataset,
        model=result.model,
        method=result.method,
        tune=result.tune,
        setting=result.setting,
        imbalance=result.imbalance or "",
        source=result.fitted_on if transfer else "",
        fixed=tuple((name, str(result.hyperparameters[name])) for name in result.fixed),
        prompt_set=result.prompt_set or "",
        n_views=result.n_views,
        fingerprint=result.fingerprint,
    )


def cells(results: Iterable[Result]) -> Cells:
    """The results by row and number of shots, in the order in which rows first appear.

    Of several runs of the same thing the last counts. One shot cannot be cross-validated, so what
    the defaults reach there begins the row of `cv`.
    """
    latest = {canonical_json(r.cell()): r for r in results}.values()
    rows = [(row_of(r), r) for r in latest]
    validated = {row.anywhere() for row, r in rows if r.tune == "cv"}
    found: Cells = {}
    for row, r in rows:
        as_cv = row._replace(tune="cv")
        first = r.shots == 1 and r.tune == "none" and as_cv.anywhere() in validated
        found.setdefault(as_cv if first else row, {}).setdefault(r.shots, []).append(r)
    return {
        row: {k: sorted(by_shots[k], key=lambda r: r.seed) for k in sorted(by_shots)}
        for row, by_shots in found.items()
    }


def tasks(rows: Cells) -> dict[Task, Cells]:
    """The rows of each task."""
    found: dict[Task, Cells] = {}
    for row, by_shots in rows.items():
        found.setdefault(row.task, {})[row] = by_shots
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
    kinds = {(row.anywhere()._replace(tune=""), r.shots) for r in results for row in [row_of(r)]}
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
    seeds = [tuple(r.seed for r in group) for group in groups]
    if len(set(seeds)) == 1:
        draws = zip(*groups, strict=True)
        return shots, *mean_interval([math.fsum(map(value, d)) / len(d) for d in draws])
    means = [over_seeds(group, value)[1] for group in groups]
    return shots, math.fsum(means) / len(means), math.nan


def by_dataset(rows: Cells) -> dict[Row, dict[int, dict[str, list[Result]]]]:
    """Row without its dataset -> shots -> dataset -> the results of its seeds."""
    found: dict[Row, dict[int, dict[str, list[Result]]]] = {}
    for row, by_shots in rows.items():
        for shots, results in by_shots.items():
            here = found.setdefault(row.anywhere(), {}).setdefault(shots, {})
            here[row.dataset] = results  # of two stores of a dataset, the later
    return found


def labels(rows: Iterable[Row]) -> dict[Row, str]:
    """What to call each row in its task: the method, and what sets it apart from others of it."""
    rows = list(rows)
    names = {}
    for row in rows:
        details = [f"{name}={value}" for name, value in row.fixed]
        if row.prompt_set:
            details.append(f"prompts {row.prompt_set}")
        alike = [r for r in rows if (r.dataset, r.method) == (row.dataset, row.method)]
        if len({r.n_views for r in alike}) > 1:
            details.append(f"{row.n_views} view" + "s" * (row.n_views != 1))
        if len({r.fingerprint for r in alike}) > 1:
            details.append(f"store {row.fingerprint[:6]}")
        names[row] = f"{row.method} ({', '.join(details)})" if details else row.method
    return names


def datasets_of(rows: Mapping[Row, object]) -> list[str]:
    """The datasets, in the order in which they first appear."""
    return list(dict.fromkeys(row.dataset for row in rows))
