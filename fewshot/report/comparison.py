"""The section of our accuracies beside published ones of the same method, model and task."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fewshot.report import published
from fewshot.report.class_groups import base_new_averages, mean_h
from fewshot.report.content import Section
from fewshot.report.lines import of_part
from fewshot.report.published import Figure, Key
from fewshot.results.groups import Cells, Row, by_dataset, labels, over_datasets, over_seeds
from fewshot.results.log import Result
from fewshot.tables import Cell, Number, Table

HEADER = (
    "dataset", "setting", "model", "method", "shots", "classes", "ours", "published",
    "difference", "source", "where protocols differ",
)  # fmt: skip


class Ours(NamedTuple):
    """One of our accuracies.

    Attributes:
        dataset: Its name, or one of `published.AVERAGES`.
        part: Of the classes: one of `published.PARTS`.
        accuracy: In 0..1.
        half: Half its 95 % interval.
    """

    dataset: str
    part: str
    accuracy: float
    half: float


def published_section(rows: Cells, figures: Mapping[Key, Figure]) -> Section:
    """Ours beside what was published of the same method, model, setting, shots and dataset."""
    names = labels(rows)
    lines: list[list[Cell]] = []
    sources: dict[str, int] = {}
    known: dict[str, bool] = {}
    for row, by_shots in rows.items():
        what = f"{row.method} on {row.dataset}, {row.model}, {row.setting}"
        for shots, group in by_shots.items():
            found = _lines(row, names[row], shots, group, _ours(row, group), figures, sources)
            known[what] = known.get(what, False) or bool(found)
            lines += found
    averaged = by_dataset(rows)
    names = labels(averaged)
    for row, found_here in averaged.items():
        for shots, here in found_here.items():
            group = [result for of_dataset in here.values() for result in of_dataset]
            ours = _our_averages(row, here)
            lines += _lines(row, names[row], shots, group, ours, figures, sources)
    made = Section("Ours beside published figures")
    made.notes.append(
        "Accuracies in %, differences in points: ours less theirs. A figure is the authors' own "
        "where there is one. A difference within our interval says nothing, and where protocols "
        "differ a difference may be theirs rather than the method's."
    )
    if lines:
        notes = tuple(f"[{number}] {source}" for source, number in sources.items())
        made.blocks["published"] = Table("Ours and published", HEADER, lines, notes)
    else:
        made.notes.append("No published figure here is of the same as any of these results.")
    without = [what for what, matched in known.items() if not matched]
    if without and lines:
        more = f"; and {len(without) - 12} more" if len(without) > 12 else ""
        made.notes.append(f"No figure is known here for: {'; '.join(without[:12])}{more}.")
    return made


def _ours(row: Row, group: Sequence[Result]) -> Iterator[Ours]:
    """Our accuracies of one cell: one, or from base to new three."""
    _, mean, half = over_seeds(group)
    if row.setting == "base-to-new":
        for part in ("base", "new"):
            _, value, width = over_seeds(group, of_part(part))
            yield Ours(row.dataset, part, value, width)
        mean = mean_h(group)
    yield Ours(row.dataset, "accuracy", mean, half)


def _our_averages(row: Row, here: Mapping[str, list[Result]]) -> Iterator[Ours]:
    """Our averages, where there is a result on every dataset of the benchmark."""
    benchmark = published.VARIANTS if row.setting == "domain-generalization" else published.ELEVEN
    if not set(benchmark) <= set(here):
        return
    groups = [here[dataset] for dataset in benchmark]
    if row.setting == "base-to-new":
        base, new, of_averages, average = base_new_averages(groups, benchmark)
        nan = float("nan")
        yield Ours("average", "base", base, nan)
        yield Ours("average", "new", new, nan)
        yield Ours("average", "accuracy", of_averages, nan)
        yield Ours("mean_of_harmonic_means", "accuracy", average, nan)
    else:
        _, mean, half = over_datasets(groups, benchmark)
        yield Ours("average", "accuracy", mean, half)


def _lines(
    row: Row,
    name: str,
    shots: int,
    group: Sequence[Result],
    ours: Iterable[Ours],
    figures: Mapping[Key, Figure],
    sources: dict[str, int],
) -> list[list[Cell]]:
    """A line for each of our accuracies that a figure was published of.

    Args:
        row: Ours.
        name: What tables call it.
        shots: K.
        group: The results that the accuracies are of.
        ours: The accuracies.
        figures: The published ones.
        sources: Source -> its number; new ones are added.
    """
    model = published.model_name(row.model)
    if model is None or row.synthesized is not None:
        return []
    method = published.method_name(row.method)
    lines: list[list[Cell]] = []
    for dataset, part, accuracy, half in ours:
        figure = figures.get((method, model, row.setting, shots, dataset, part))
        if figure is None:
            continue
        classes = part if part != "accuracy" else "H" if row.setting == "base-to-new" else "all"
        why = published.differences(
            figure,
            tune=group[0].tune,
            n_views=row.n_views,
            seeds={r.seed for r in group},
            text=all(r.text_recipe is not None for r in group),
        )
        number = sources.setdefault(_source(figure), len(sources) + 1)
        lines.append([
            dataset.replace("_", " ") if dataset in published.AVERAGES else dataset,
            row.setting, row.model, f"{name}, {row.tune}" if row.tune != "none" else name, shots,
            classes, Number(100 * accuracy, 100 * half), Number(100 * figure.accuracy, digits=2),
            Number(100 * (accuracy - figure.accuracy), signed=True), f"[{number}]", "; ".join(why),
        ])  # fmt: skip
    return lines


def _source(figure: Figure) -> str:
    """Who says it and how the figure came about, as one note."""
    by = "the method's authors" if figure.by == "authors" else "others than the method's authors"
    sure = "read off a figure" if figure.confidence == "digitized" else figure.confidence
    return f"{figure.source} ({figure.where}), by {by}; confidence: {sure}. {figure.protocol.note}"
