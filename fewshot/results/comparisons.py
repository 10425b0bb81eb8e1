"""Saved predictions found in pairs, and what their comparison says, as a table or JSON lines."""

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from cache.datasets.manifest import metric_of
from cache.errors import UserError, unknown
from fewshot.results.groups import Cells, Row, cells, labels, task_of
from fewshot.results.image_bytes import different_images
from fewshot.results.log import Result, read
from fewshot.results.prediction_files import Predictions, read_predictions
from fewshot.results.significance import Comparison, PairedPredictions, compare
from fewshot.run import plain_setting
from fewshot.tables import Number, Table, text

WITHOUT_LABELS = ("zero-shot", "unsupervised")


@dataclass(frozen=True)
class Line:
    """A comparison and of what; None is all, and where everything is, unknown.

    Attributes:
        dataset: Its name.
        shots: K.
        seed: What drew them.
        found: The comparison.
    """

    dataset: str | None
    shots: int | None
    seed: int | None
    found: Comparison


@dataclass(frozen=True, eq=False)
class _Match:
    """Two results that had the same to do, the one that was drawn for, and their predictions."""

    first: Result
    second: Result
    drawn: Result
    pair: PairedPredictions


@dataclass(frozen=True)
class Contest:
    """A against B.

    Attributes:
        a: What A is.
        b: What B is.
        lines: One for each pair; then, of several pairs, one for each number of shots that
            several have, and last one of all.
    """

    a: str
    b: str
    lines: list[Line]


def compare_files(a: Path, b: Path) -> Contest:
    """The predictions in one file against those in another.

    Raises:
        UserError: One of them cannot be read, or they are of different test images.
    """
    return Contest(
        str(a),
        str(b),
        [Line(None, None, None, compare([(read_predictions(a), read_predictions(b))]))],
    )


def compare_runs(
    results: Path,
    a: str,
    b: str,
    *,
    datasets: Collection[str] = (),
    shots: Collection[int] = (),
    seeds: Collection[int] = (),
    say: Callable[[str], None] = warnings.warn,
) -> list[Contest]:
    """Every run of one method against each of the other's that had the same to do.

    That is: the same dataset, model, store, prompts, setting, shots and seed; and of one method
    against itself, the same dataset, model, setting, shots and seed, so that runs with different
    settings are compared. What learns from no labels had the same to do whatever the shots and
    the seed. Of several runs of the same thing the last counts.

    Args:
        results: A file of results, or a folder with a `results.jsonl`.
        a: A method's name.
        b: Another's, or the same.
        datasets: Only these; all without any.
        shots: Only these.
        seeds: Only these.
        say: Called with a sentence for each line of the file that is no result, and for each file
            of predictions that cannot be read.

    Raises:
        UserError: No such runs, none with predictions, or none whose predictions can be read.
    """
    file = results / "results.jsonl" if results.is_dir() else results
    there = read(file, say)
    if not there:
        raise UserError(f"no results in {file}; `fewshot fit` and `fewshot bench` write some")
    for name in (a, b):
        if name not in {r.method for r in there}:
            raise unknown(f"method in {file}", name, {r.method for r in there})
    runs = cells(r for r in there if r.predictions and r.method in (a, b))
    compared = (r for by in runs.values() for group in by.values() for r in group)
    for note in different_images(compared):
        say(note)
    names = _names(runs)
    contests: dict[tuple[tuple[str, str], tuple[str, str]], list[_Match]] = {}
    unread: dict[str, UserError] = {}
    for one, other in _opponents(list(runs), a, b):
        for first, second in _matched(runs[one], runs[other]):
            drawn = first if first.shots else second
            asked = ((drawn.dataset, datasets), (drawn.shots, shots), (drawn.seed, seeds))
            if all(value in only for value, only in asked if only):
                try:
                    pair = _predictions(first), _predictions(second)
                except UserError as error:
                    unread[str(error)] = error
                    continue
                match = _Match(first, second, drawn, pair)
                contests.setdefault((names[one], names[other]), []).append(match)
    if unread and not contests:
        raise next(iter(unread.values()))
    for why in unread:
        say(f"left out: {why}")
    if not contests:
        raise UserError(
            f"no runs of {a} and {b} in {file} that agree in dataset, model, setting, shots and "
            "seed have predictions; run both with --save-predictions"
        )
    return [
        Contest(
            f"{a}, tuned by {_tuned_by(match.first for match in matches)}",
            f"{b}, tuned by {_tuned_by(match.second for match in matches)}",
            _lines([(match.drawn, match.pair) for match in matches]),
        )
        for ((a, _), (b, _)), matches in contests.items()
    ]


def as_table(contest: Contest, *, per_class: bool = False) -> str:
    """The contest in columns, accuracies in percent and differences in points.

    Args:
        contest: A against B.
        per_class: Show mean per-class accuracies, too, whatever is published of the datasets.
    """
    doubled = per_class or any(
        metric_of(line.dataset or "") == "per-class" for line in contest.lines
    )
    beside = ("A per class", "B per class") if doubled else ()
    header = (
        "dataset", "shots", "seed", "A", "B", "A − B", "95 % interval", "only A", "only B",
        "p", "mid-p", *beside,
    )  # fmt: skip
    known = contest.lines[0].dataset is not None
    rows = []
    for line in contest.lines:
        c = line.found
        ends = " to ".join(str(Number(100 * end, digits=2, signed=True)) for end in c.interval)
        what = ["all" if v is None else v for v in (line.dataset, line.shots, line.seed)]
        rows.append(
            [
                *(what if known else ()),
                Number(100 * c.accuracy_a, digits=2),
                Number(100 * c.accuracy_b, digits=2),
                Number(100 * c.difference, digits=2, signed=True),
                ends,
                c.only_a,
                c.only_b,
                f"{c.p:.2g}",
                "" if c.mid_p is None else f"{c.mid_p:.2g}",
                *(
                    Number(100 * value, digits=2)
                    for value in (c.per_class_a, c.per_class_b)
                    if doubled
                ),
            ]
        )
    notes = [f"A is {contest.a}", f"B is {contest.b}"]
    if len(contest.lines) > 1:
        notes.append(
            "all: every pair counts the same; an image is drawn with all its seeds and shots, "
            "which so count as one image and not as several"
        )
    return text(Table("", header if known else header[3:], rows, tuple(notes)))


def as_json(contest: Contest) -> Iterator[str]:
    """A JSON object for each line of the contest; what is null, the line is over all of."""
    for line in contest.lines:
        values: dict[str, Any] = {"a": contest.a, "b": contest.b, **asdict(line)}
        found = values.pop("found")
        yield json.dumps({**values, "difference": line.found.difference, **found})


def _names(runs: Cells) -> dict[Row, tuple[str, str]]:
    """The name of a run on any of its datasets, and the tuning protocol of its row."""
    return {row: (f"{label}: {task_of(row)}", row.tune) for row, label in labels(runs).items()}


def _tuned_by(results: Iterable[Result]) -> str:
    """How the results of one row were tuned: at one shot those of `cv` were not."""
    tunes = {result.tune for result in results}
    if len(tunes) == 1:
        return tunes.pop()
    return f"{' and '.join(sorted(tunes - {'none'}))}, not at one shot"


def _opponents(rows: Sequence[Row], a: str, b: str) -> Iterator[tuple[Row, Row]]:
    """The rows of A and of B that had the same to do; each two once where A is B."""
    for (i, one), (j, other) in product(enumerate(rows), repeat=2):
        if (one.method, other.method) != (a, b) or (a == b and i >= j):
            continue
        alike = a == b or (one.prompt_set, one.fingerprint) == (other.prompt_set, other.fingerprint)
        place = (one.dataset, one.model) == (other.dataset, other.model)
        if alike and place and _same_task(one, other):
            yield one, other


def _same_task(one: Row, other: Row) -> bool:
    (s, t) = (plain_setting(row.setting) for row in (one, other))
    usual = ("few-shot", "imbalanced", *WITHOUT_LABELS)
    if {s, t} & set(WITHOUT_LABELS) and {s, t} <= set(usual):
        return True
    return (s, one.detail, one.source) == (t, other.detail, other.source)


def _matched(
    one: dict[int, list[Result]], other: dict[int, list[Result]]
) -> Iterator[tuple[Result, Result]]:
    """Results of the same shots and seed; what has none goes with all."""
    both = product(chain.from_iterable(one.values()), chain.from_iterable(other.values()))
    for first, second in both:
        same = (first.shots, first.seed) == (second.shots, second.seed)
        if same or 0 in (first.shots, second.shots):
            yield first, second


def _predictions(result: Result) -> Predictions:
    return read_predictions(Path(result.predictions or ""))


def _lines(pairs: Sequence[tuple[Result, PairedPredictions]]) -> list[Line]:
    lines = [_line([pair]) for pair in pairs]
    by_shots: dict[int, list[tuple[Result, PairedPredictions]]] = {}
    for pair in pairs:
        by_shots.setdefault(pair[0].shots, []).append(pair)
    if len(by_shots) > 1:
        lines += [_line(some) for _, some in sorted(by_shots.items()) if len(some) > 1]
    return [*lines, _line(pairs)] if len(pairs) > 1 else lines


def _line(pairs: Sequence[tuple[Result, PairedPredictions]]) -> Line:
    """One comparison of all these pairs."""
    dataset, shots, seed = (
        values[0] if len(set(values)) == 1 else None
        for values in zip(*((r.dataset, r.shots, r.seed) for r, _ in pairs), strict=True)
    )
    return Line(dataset, shots, seed, compare([pair for _, pair in pairs]))
