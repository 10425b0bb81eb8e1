"""Common parts of tables of results: the first cells of a row, means, and what is missing."""

from collections.abc import Iterable, Iterator, Sequence

from cache.errors import count
from fewshot.results.groups import Cells, Row, Value, by_dataset, labels, over_seeds
from fewshot.results.log import Result
from fewshot.sampling import shots_name
from fewshot.tables import Cell, Number

INTERVAL = (
    "Accuracy on the test split in %; means over seeds ± half the 95 % interval (Student's t)."
)


def heads(rows: Cells) -> Iterator[tuple[Row, list[Cell]]]:
    """Each row with its first cells: dataset, method, and how it was tuned."""
    names = labels(rows)
    for row in rows:
        yield row, [row.dataset, names[row], row.tune]


def average_heads(rows: Cells) -> Iterator[tuple[str, str, dict[int, dict[str, list[Result]]]]]:
    """Label, tuning, and shots -> dataset -> results, of each row that averages are of."""
    grouped = by_dataset(rows)
    names = labels(grouped)
    for row, found in grouped.items():
        yield names[row], row.tune, found


def series_names(rows: Iterable[Row]) -> dict[Row, str]:
    """A row's name in a drawing: its label, and of several tunings which, unless `cv`."""
    names = labels(rows)
    tunes: dict[str, set[str]] = {}
    for row, name in names.items():
        tunes.setdefault(name, set()).add(row.tune)
    return {
        row: f"{name}, {row.tune}" if len(tunes[name]) > 1 and row.tune != "cv" else name
        for row, name in names.items()
    }


def largest(rows: Cells) -> Iterator[tuple[Row, int, list[Result]]]:
    """Each row at its largest number of shots."""
    for row, by in rows.items():
        shots = max(by)
        yield row, shots, by[shots]


def at_shots(name: str, shots: int) -> str:
    """The name of a row with its number of shots, where there are any."""
    return f"{name}, {count(shots, 'shot')}" if shots else name


def count_seeds(groups: Sequence[Sequence[Result]]) -> Cell:
    """How many seeds: 3, or 1–3 where they are not as many everywhere."""
    counts = sorted({len(group) for group in groups})
    return counts[0] if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def percent(group: Sequence[Result], value: Value = lambda r: r.accuracy) -> Number:
    """The mean over seeds in %, with its interval."""
    _, mean, half = over_seeds(group, value)
    return Number(100 * mean, 100 * half)


def of_part(name: str) -> Value:
    """The accuracy on a part of the test split."""
    return lambda r: r.accuracies[name]


def over(datasets: Sequence[str]) -> str:
    """A note on what averages are over."""
    return (
        f"Averages are over {count(len(datasets), 'dataset')}, each with the same weight: "
        f"{', '.join(datasets)}."
    )


def missing(datasets: Sequence[str], found: dict[str, list[Result]]) -> list[str]:
    """The datasets that there are no results on."""
    return [name for name in datasets if name not in found]


class Incomplete:
    """Collects what averages lack."""

    def __init__(self, datasets: Sequence[str]) -> None:
        self.datasets = datasets
        self.lacking: dict[str, list[str]] = {}

    def cell(self, name: str, shots: int, found: dict[str, list[Result]]) -> Cell | None:
        """A note in place of an average that would lack datasets; None if none would."""
        lacking = missing(self.datasets, found)
        if not lacking:
            return None
        what = f"{name} has no {', '.join(lacking)}"
        self.lacking.setdefault(what, []).append(shots_name(shots))
        return f"{len(found)} of {len(self.datasets)}"

    def notes(self) -> tuple[str, ...]:
        """A sentence for each."""
        return tuple(
            f"Incomplete, so not averaged: {what} ({', '.join(shots)})."
            for what, shots in self.lacking.items()
        )
