"""The cost of results, and the hyper-parameters that tuning chose."""

from collections.abc import Iterator, Sequence
from statistics import median

from cache.errors import count
from fewshot.outline import declared
from fewshot.report.content import Scatter
from fewshot.report.lines import largest, percent, series_names
from fewshot.results.groups import Cells, datasets_of, labels
from fewshot.results.log import Result
from fewshot.tables import Number, Table

NOTE = (
    "At the most shots of each row; medians over seeds. Fitting is tuning and fitting, predicting "
    "the whole test split, both from features in memory on the machine that ran them. Parameters "
    "are those that gradients moved: 0 for a closed form."
)


def cost(rows: Cells) -> Table:
    """At each row's most shots."""
    names = labels(rows)
    lines = [
        (
            row.dataset, names[row], row.tune, shots, percent(group),
            Number(median(r.fit_seconds for r in group), digits=3),
            Number(median(r.predict_seconds for r in group), digits=3),
            int(group[0].measures.get("trained_parameters", 0)),
        )
        for row, shots, group in largest(rows)
    ]  # fmt: skip
    return Table(
        "Time and trained parameters",
        (
            "dataset", "method", "tuned by", "shots", "accuracy", "fit, s", "predict, s",
            "trained parameters",
        ),
        lines,
        (NOTE,),
    )  # fmt: skip


def cost_scatters(rows: Cells) -> Iterator[tuple[str, Scatter]]:
    """Accuracy against time and against parameters, on each dataset, where there is a choice."""
    names = series_names(rows)
    for dataset in datasets_of(rows):
        here = [(row, shots, g) for row, shots, g in largest(rows) if row.dataset == dataset]
        if len(here) < 2:
            continue
        seconds = [
            (names[row], median(r.fit_seconds for r in g), percent(g).value, count(shots, "shot"))
            for row, shots, g in here
        ]
        yield (
            f"time-{dataset}",
            Scatter(f"{dataset}: time", "seconds to fit", "accuracy, %", seconds, log=True),
        )
        counts = [
            (names[row], g[0].measures.get("trained_parameters", 0.0), percent(g).value,
             count(shots, "shot"))
            for row, shots, g in here
        ]  # fmt: skip
        if any(count for _, count, _, _ in counts):
            title = f"{dataset}: trained parameters"
            yield (
                f"parameters-{dataset}",
                Scatter(title, "trained parameters", "accuracy, %", counts, log=True),
            )


def hyperparameters(rows: Cells) -> Table:
    """The hyper-parameters that tuning chose for each seed."""
    names = labels(rows)
    lines = [
        (row.dataset, names[row], row.tune, shots, name, values)
        for row, by in rows.items()
        for shots, group in by.items()
        if group[0].tune != "none"
        for name, values in _chosen(group)
    ]
    return Table(
        "Chosen hyper-parameters",
        ("dataset", "method", "tuned by", "shots", "hyper-parameter", "chosen, seed by seed"),
        lines,
    )


def _chosen(group: Sequence[Result]) -> Iterator[tuple[str, str]]:
    first = group[0]
    known = declared("fewshot.methods").get(first.method)
    for name in first.hyperparameters:
        values = [r.hyperparameters.get(name) for r in group]
        tuned = name in known.grid if known else len({str(v) for v in values}) > 1
        if tuned and name not in first.fixed and name != "seed":
            yield name, ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
