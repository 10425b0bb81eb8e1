"""Tables where accuracy has parts: base and new classes; classes of many, medium and few images."""

from collections.abc import Mapping, Sequence

from fewshot.metrics import harmonic_mean
from fewshot.report.lines import (
    INTERVAL,
    Incomplete,
    average_heads,
    count_seeds,
    heads,
    of_part,
    over,
    percent,
)
from fewshot.results.groups import (
    Cells,
    Value,
    datasets_of,
    mean_per_class,
    over_datasets,
    over_seeds,
)
from fewshot.results.log import Result
from fewshot.run import CLASS_GROUPS
from fewshot.tables import Cell, Number, Table

CONVENTIONS = (
    "Two conventions are in use for the average H: the harmonic mean of the averages (CoCoOp's "
    "paper and most since), and the average of the datasets' harmonic means (GDA's paper)."
)
GROUPS_NOTE = (
    "Shots are those of the largest class. Many: over 100 train images of the class; medium: 20 to "
    "100; few: under 20."
)


def base_new(rows: Cells) -> Table:
    """On base classes, on new ones, and their harmonic mean."""
    lines = [
        (
            *head, shots, percent(group, of_part("base")), percent(group, of_part("new")),
            Number(100 * mean_h(group), percent(group).half), len(group),
        )
        for row, head in heads(rows)
        for shots, group in rows[row].items()
    ]  # fmt: skip
    return Table(
        "Accuracy on base and new classes",
        ("dataset", "method", "tuned by", "shots", "base", "new", "H", "seeds"),
        lines,
        (INTERVAL, "H is the harmonic mean of the mean accuracies on base and on new classes."),
    )


def base_new_average(rows: Cells) -> Table:
    """The same on average, by both conventions."""
    datasets = datasets_of(rows)
    incomplete = Incomplete(datasets)
    lines: list[list[Cell]] = []
    for name, tune, found in average_heads(rows):
        for shots, here in found.items():
            instead = incomplete.cell(f"{name} ({tune})", shots, here)
            seeds = count_seeds(list(here.values()))
            if instead is None:
                averages = base_new_averages(list(here.values()), datasets)
                numbers: list[Cell] = [Number(100 * value) for value in averages]
            else:
                numbers = [instead] * 4
            lines.append([name, tune, shots, *numbers, seeds])
    header = (
        "method", "tuned by", "shots", "base", "new", "H of the averages", "average of H", "seeds",
    )  # fmt: skip
    notes = (
        over(datasets),
        CONVENTIONS,
        *incomplete.notes(),
    )
    return Table("Average over datasets", header, lines, notes)


def open_set(rows: Cells) -> Table:
    """On known images, and how well these are separated from unknown ones."""
    return _in_parts(
        rows,
        "Accuracy on known classes, and known against unknown images",
        {"known": "known", "auroc": "AUROC", "fpr95": "FPR95"},
        "AUROC judges the score at all thresholds; FPR95 is better when lower.",
        "H is the harmonic mean of the accuracy and AUROC.",
    )


def generalized(rows: Cells) -> Table:
    """On seen and on unseen classes, each told apart from all others."""
    return _in_parts(
        rows,
        "Accuracy on seen and unseen classes together",
        {"seen": "S", "unseen": "U"},
        "S and U are mean accuracies per class, and H is their harmonic mean.",
    )


def _in_parts(rows: Cells, title: str, parts: Mapping[str, str], *notes: str) -> Table:
    """Each part of the accuracy in a column of its own, and H, which is the accuracy.

    Args:
        rows: The results.
        title: The table's.
        parts: The part's key in `Result.accuracies` -> its column's header.
        notes: What stands under the table.
    """
    lines = [
        (*head, shots, *(percent(group, of_part(p)) for p in parts), percent(group), len(group))
        for row, head in heads(rows)
        for shots, group in rows[row].items()
    ]
    header = ("dataset", "method", "tuned by", "shots", *parts.values(), "H", "seeds")
    return Table(title, header, lines, (INTERVAL, *notes))


def mean_h(group: Sequence[Result]) -> float:
    """Harmonic mean of the seeds' mean base and mean new accuracy."""
    return harmonic_mean(*(over_seeds(group, of_part(part))[1] for part in ("base", "new")))


def base_new_averages(
    groups: Sequence[Sequence[Result]], datasets: Sequence[str]
) -> tuple[float, float, float, float]:
    """Mean base, mean new, and both conventions of their harmonic mean.

    The harmonic mean of the averages is CoCoOp's, the mean of the datasets' harmonic means GDA's.

    Args:
        groups: For each dataset the results of its seeds.
        datasets: Which there have to be.
    """
    base, new = (over_datasets(groups, datasets, of_part(part))[1] for part in ("base", "new"))
    return base, new, harmonic_mean(base, new), sum(map(mean_h, groups)) / len(groups)


def imbalanced(rows: Cells) -> Table:
    """On all images, over classes, and on classes of many, medium and few images."""
    groups = _groups_of(rows)
    lines = [
        (
            *head, shots, percent(group), percent(group, mean_per_class),
            *(percent(group, of_part(g)) if _have(group, g) else "" for g in groups),
            len(group),
        )
        for row, head in heads(rows)
        for shots, group in rows[row].items()
    ]  # fmt: skip
    return Table(
        "Accuracy on classes of many, medium and few images",
        ("dataset", "method", "tuned by", "shots", "all", "mean of classes", *groups, "seeds"),
        lines,
        (INTERVAL, GROUPS_NOTE),
    )


def imbalanced_average(rows: Cells) -> Table:
    """The same on average over datasets."""
    datasets = datasets_of(rows)
    groups = _groups_of(rows)
    incomplete = Incomplete(datasets)
    lines: list[list[Cell]] = []
    for name, tune, found in average_heads(rows):
        for shots, here in found.items():
            instead = incomplete.cell(f"{name} ({tune})", shots, here)
            numbers: list[Cell] = []
            for part in ("all", "classes", *groups):
                value: Value = of_part(part)
                if part == "all":
                    value = _accuracy
                elif part == "classes":
                    value = mean_per_class
                if instead is not None:
                    numbers.append(instead)
                elif part in groups and not all(_have(group, part) for group in here.values()):
                    numbers.append("not on all")
                else:
                    _, mean, half = over_datasets(list(here.values()), datasets, value)
                    numbers.append(Number(100 * mean, 100 * half))
            lines.append([name, tune, shots, *numbers, count_seeds(list(here.values()))])
    header = ("method", "tuned by", "shots", "all", "mean of classes", *groups, "seeds")
    notes = (INTERVAL, over(datasets), GROUPS_NOTE, *incomplete.notes())
    return Table("Average over datasets", header, lines, notes)


def _groups_of(found: Cells) -> list[str]:
    results = [r for by in found.values() for group in by.values() for r in group]
    return [name for name in CLASS_GROUPS if any(name in r.accuracies for r in results)]


def _have(results: Sequence[Result], group: str) -> bool:
    return all(group in r.accuracies for r in results)


def _accuracy(result: Result) -> float:
    return result.accuracy
