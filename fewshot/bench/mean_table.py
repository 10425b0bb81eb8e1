"""A benchmark's table: each method's mean over datasets against shots, and what is missing from it.

It is made of what was asked for as well as of what came of it, so that a mean which lacks a
dataset or a run says so. `groups.over_datasets` refuses such means; here the rest of a benchmark
is not to be lost to one failed cell.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import fsum, nan
from typing import Any

from fewshot.metrics import harmonic_mean, mean_interval
from fewshot.results.groups import TRANSFERS
from fewshot.results.log import Result
from fewshot.sampling import shots_name
from fewshot.tables import Cell, Number, Table

Asked = Mapping[str, Any]  # what `Result.cell` says
Runs = dict[str, dict[int, Result | None]]  # dataset -> seed -> what came of it
Row = tuple[str, ...]  # as COLUMNS names it

COLUMNS = ("method", "model", "setting", "learned on", "prompts", "imbalance", "views")
PARTS = ("base", "new", "H")


def mean_table(runs: Sequence[tuple[Asked, Result | None]]) -> Table:
    """One line per method with its settings, one column per number of shots.

    A cell is the mean over datasets of the mean over seeds, with the 95 % interval over seeds of
    the mean over datasets. What differs in a column of `COLUMNS` is never averaged; a column in
    which all lines are alike is told below the table instead.

    Args:
        runs: What was asked for, and what came of it, None if nothing.
    """
    rows: dict[Row, dict[int, Runs]] = {}
    tunes: dict[Row, set[str]] = {}
    for asked, result in runs:
        row = _row(asked)
        tunes.setdefault(row, set()).add(asked["tune"])
        here = rows.setdefault(row, {}).setdefault(asked["shots"], {})
        here.setdefault(asked["dataset"], {})[asked["seed"]] = result
    datasets = sorted({asked["dataset"] for asked, _ in runs})
    all_shots = sorted({asked["shots"] for asked, _ in runs})
    told = [i for i in range(1, len(COLUMNS)) if len({row[i] for row in rows} - {""}) > 1]
    halves = any(_has_parts(row) for row in rows)
    header = ["method", *(COLUMNS[i] for i in told), "tuned by", *(["classes"] if halves else [])]
    lines: list[list[Cell]] = []
    for row, by_shots in rows.items():
        names = [row[0], *(row[i] for i in told), _tuned_by(tunes[row])]
        for part in PARTS if _has_parts(row) else ("",):
            means = [_mean(by_shots.get(k), part, len(datasets)) for k in all_shots]
            lines.append([*names, *([part] if halves else []), *means])
    common = [max(row[i] for row in rows) for i in range(1, len(COLUMNS)) if i not in told]
    title = ", ".join(filter(None, common))
    notes = [f"{title}: {_what_is_averaged(datasets)}"]
    if any("±" in str(cell) for line in lines for cell in line):
        of_what = ", of the mean over datasets" if len(datasets) > 1 else ""
        notes.append(f"±: 95 % interval over seeds (Student's t){of_what}.")
    if halves:
        notes.append("H: harmonic mean of the mean base and the mean new accuracy, as CoCoOp's.")
    if any(tune > {"none"} for tune in tunes.values()):
        notes.append("Where a class has one image there is no tuning: the defaults.")
    bare = sorted({r.dataset for _, r in runs if r is not None and r.text_recipe is None})
    if bare and any(r is not None and r.text_recipe is not None for _, r in runs):
        notes.append(f"There is no text of {', '.join(bare)}: learned from images alone there.")
    return Table(title, (*header, *map(shots_name, all_shots)), lines, tuple(notes))


def _row(asked: Asked) -> Row:
    """What is kept apart, as `COLUMNS` names it."""
    transfer = asked["setting"].removeprefix("transductive ") in TRANSFERS
    return (
        " ".join([asked["method"], *(f"{k}={v}" for k, v in asked["fixed"].items())]),
        asked["model"],
        asked["setting"],
        asked["fitted_on"] if transfer else "",
        asked["prompt_set"] or "",
        asked["imbalance"] or "",
        f"{asked['n_views']} views" if asked["n_views"] > 1 else "",
    )


def _has_parts(row: Row) -> bool:
    return row[COLUMNS.index("setting")].endswith("base-to-new")


def _tuned_by(tunes: set[str]) -> str:
    return next(iter(sorted(tunes - {"none"})), "none")


def _what_is_averaged(datasets: Sequence[str]) -> str:
    if len(datasets) == 1:
        return f"accuracy on the test split of {datasets[0]} in %, mean over seeds."
    names = ", ".join(datasets)
    return f"accuracy on the test split in %, mean over {len(datasets)} datasets ({names})."


def _mean(runs: Runs | None, part: str, n_datasets: int) -> str:
    """A cell, of one part of the classes where one is named; says how much of it is missing."""
    if runs is None:
        return ""
    there: dict[str, dict[int, Result]] = {}
    for dataset, by_seed in runs.items():
        for seed, result in by_seed.items():
            if result is not None:
                there.setdefault(dataset, {})[seed] = result
    if not there:
        return "failed"
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in there.values())))
    draws = [_average(([by_seed[s]] for by_seed in there.values()), part) for s in seeds]
    half = mean_interval(draws)[1] if draws else nan
    mean = _average((by_seed.values() for by_seed in there.values()), part)
    text = str(Number(100 * mean, 100 * half))
    if len(there) < n_datasets:
        return f"{text} ({len(there)} of {n_datasets} datasets)"
    asked, got = sum(map(len, runs.values())), sum(map(len, there.values()))
    return text if got == asked else f"{text} ({got} of {asked} runs)"


def _average(by_dataset: Iterable[Iterable[Result]], part: str) -> float:
    """The mean over datasets of the means over results; of H, that of the two means."""
    groups = [list(results) for results in by_dataset]
    if part == "H":
        return harmonic_mean(_average(groups, "base"), _average(groups, "new"))
    means = [
        fsum(r.accuracies[part] if part else r.accuracy for r in results) / len(results)
        for results in groups
    ]
    return fsum(means) / len(means)
