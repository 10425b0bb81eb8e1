"""A benchmark's table: each method's mean over datasets against shots, and what is missing from it.

It is made of what was asked for as well as of what came of it, so that a mean which lacks a
dataset or a run says so. `groups.over_datasets` refuses such means; here the rest of a benchmark
is not to be lost to one failed run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import nan

from cache.errors import count
from fewshot.metrics import harmonic_mean, mean_interval
from fewshot.results.groups import (
    UNTUNED,
    Row,
    Value,
    average,
    by_dataset,
    cells,
    mean_per_class,
    over_draws,
    shows_per_class,
)
from fewshot.results.log import Result
from fewshot.results.summaries import shots_header
from fewshot.run import PARTS, Run, plain_setting
from fewshot.tables import Cell, Number, Table

NOTES = {
    "base-to-new": "H: harmonic mean of the mean base and the mean new accuracy, as CoCoOp's.",
    "generalized": "Seen and unseen: mean accuracy per class, among all classes; H of the means.",
    "open-set": "Open set: H is the harmonic mean of the mean known accuracy and mean AUROC.",
    "multi-label": "Several labels per image: mAP, the mean over classes of average precision.",
}
COLUMNS = ("method", "model", "setting", "learned on", "prompts", "imbalance", "known", "views")


def mean_table(runs: Sequence[Run], *, per_class: bool = False) -> Table:
    """One line per method with its settings, one column per number of shots.

    A cell is the mean over datasets of the mean over seeds, with the 95 % interval over seeds of
    the mean over datasets. What differs in a column of `COLUMNS` is never averaged; a column in
    which all lines are alike is noted below the table instead.

    Args:
        runs: Every run that was asked for; a `Result` where there is one.
        per_class: Show mean per-class accuracy in columns beside, as where it is what is published
            of a dataset.
    """
    doubled = per_class or shows_per_class(runs)
    rows = by_dataset(cells(replace(run, tune="") for run in runs))
    tunes: dict[Row, set[str]] = {}
    for run in runs:
        tunes.setdefault(replace(run.row.anywhere(), tune=""), set()).add(run.tune)
    names = {row: _names(row) for row in rows}
    datasets = sorted({run.dataset for run in runs})
    all_shots = sorted({run.shots for run in runs})
    shown = [
        i for i in range(1, len(COLUMNS)) if len({name[i] for name in names.values()} - {""}) > 1
    ]
    parted = any(map(_parts, rows))
    header = ["method", *(COLUMNS[i] for i in shown), "tuned by", *(["classes"] if parted else [])]
    lines: list[list[Cell]] = []
    for row, by_shots in rows.items():
        first = [names[row][0], *(names[row][i] for i in shown), _tuned_by(tunes[row])]
        for part in (*_parts(row), "H") if len(_parts(row)) > 1 else _parts(row) or ("",):
            halves = _parts(row)[:2] if part == "H" else (part,)
            means = [_mean(by_shots.get(k, {}), halves, len(datasets)) for k in all_shots]
            if doubled and part in ("", "H"):
                beside = ("per class",)
                means += [_mean(by_shots.get(k, {}), beside, len(datasets)) for k in all_shots]
            elif doubled:
                means += [""] * len(all_shots)
            lines.append([*first, *([part] if parted else []), *means])
    common = [max(n[i] for n in names.values()) for i in range(1, len(COLUMNS)) if i not in shown]
    title = ", ".join(filter(None, common))
    intervals = any("±" in str(cell) for line in lines for cell in line)
    notes = (f"{title}: {_what_is_averaged(datasets)}", *_notes(runs, tunes, intervals))
    return Table(title, (*header, *shots_header(all_shots, doubled)), lines, notes)


def _notes(runs: Sequence[Run], tunes: Mapping[Row, set[str]], intervals: bool) -> Iterator[str]:
    """The notes below the table.

    Args:
        runs: All of them.
        tunes: Row -> how its runs were tuned.
        intervals: True if a cell of the table has one.
    """
    if intervals:
        several = len({run.dataset for run in runs}) > 1
        of_what = ", of the mean over datasets" if several else ""
        yield f"±: 95 % interval over seeds (Student's t){of_what}."
    settings = {plain_setting(run.setting) for run in runs}
    yield from (note for setting, note in NOTES.items() if setting in settings)
    if any(tune > {"none"} for tune in tunes.values()):
        yield UNTUNED
    done = [run for run in runs if isinstance(run, Result)]
    bare = sorted({one.dataset for one in done if one.text_recipe is None})
    if bare and any(one.text_recipe is not None for one in done):
        yield f"There is no text of {', '.join(bare)}: learned from images alone there."


def _names(row: Row) -> tuple[str, ...]:
    """The row's cells of `COLUMNS`."""
    return (
        row.name,
        row.model,
        row.setting,
        row.source,
        row.prompt_set or "",
        row.imbalance or "",
        row.detail if row.known or row.synthesized else "",
        count(row.n_views, "view") if row.n_views > 1 else "",
    )


def _parts(row: Row) -> tuple[str, ...]:
    return PARTS.get(plain_setting(row.setting), ())


def _tuned_by(tunes: set[str]) -> str:
    return next(iter(sorted(tunes - {"none"})), "none")


def _what_is_averaged(datasets: Sequence[str]) -> str:
    if len(datasets) == 1:
        return f"accuracy on the test split of {datasets[0]} in %, mean over seeds."
    names = ", ".join(datasets)
    return f"accuracy on the test split in %, mean over {len(datasets)} datasets ({names})."


def _mean(runs: Mapping[str, Sequence[Run]], parts: tuple[str, ...], n_datasets: int) -> str:
    """A cell, of the part of the classes that is named if any; says how much of it is missing."""
    if not runs:
        return ""
    done = [[run for run in seeds if isinstance(run, Result)] for seeds in runs.values()]
    there = [results for results in done if results]
    if not there:
        return "failed"
    draws = over_draws(there, lambda groups: _average(groups, parts))
    half = mean_interval(draws)[1] if draws else nan
    text = str(Number(100 * _average(there, parts), 100 * half))
    if len(there) < n_datasets:
        return f"{text} ({len(there)} of {n_datasets} datasets)"
    asked, got = sum(map(len, runs.values())), sum(map(len, there))
    return text if got == asked else f"{text} ({got} of {asked} runs)"


def _value(part: str) -> Value:
    """The accuracy on a part of the classes, or of all, or the mean `per class`."""
    if part == "per class":
        return mean_per_class
    return lambda r: r.accuracies[part] if part else r.accuracy


def _average(groups: Sequence[Sequence[Result]], parts: tuple[str, ...]) -> float:
    """The mean over datasets of the means over results; of two parts, the harmonic mean."""
    one, *other = (average(groups, _value(part)) for part in parts)
    return harmonic_mean(one, *other) if other else one
