"""A report on results: tables, drawings, and one page that holds all of them."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import UserError, count
from cache.files.atomic import replacing
from fewshot.report import published
from fewshot.report.accuracy import section
from fewshot.report.classes import add_classes
from fewshot.report.comparison import published_section
from fewshot.report.content import MAIN, Curves, Report, ReportBlock, Scatter, slug
from fewshot.report.html_page import page
from fewshot.report.label_tables import add_label_tables
from fewshot.report.transfer_difficulty import residual_section
from fewshot.results import log
from fewshot.results.groups import Cells, cells, shows_per_class, tasks
from fewshot.results.image_bytes import different_images
from fewshot.results.log import Result
from fewshot.tables import FORMATS, Table

SUFFIXES = {"md": ".md", "latex": ".tex", "csv": ".csv"}


@dataclass(frozen=True)
class Read:
    """Results from files, and what to say of them."""

    results: list[Result]
    notes: list[str]


def read(paths: Iterable[Path]) -> Read:
    """All results in the files, and in the folders' files named results.jsonl.

    Raises:
        UserError: No such file, no results in any, or a folder without such files.
    """
    found: list[Result] = []
    notes: list[str] = []
    for file in _files(paths):
        found += log.read(file, notes.append)
    if not found:
        why = f": {notes[0]}" if notes else ""
        raise UserError(f"no results in these files{why}; `fewshot fit` writes some")
    return Read(found, notes)


def _files(paths: Iterable[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(path.rglob("results.jsonl")) or sorted(path.glob("*.jsonl"))
            if not inside:
                raise UserError(f"no results.jsonl in {path}; name a file, or a folder with one")
            files |= dict.fromkeys(inside)
        else:
            files[path] = None
    return list(files)


def make(
    results: Sequence[Result],
    *,
    notes: Sequence[str] = (),
    with_published: bool = True,
    tsne: Collection[str] = (),
    stores: Path | None = None,
    per_class: bool = False,
) -> Report:
    """The report on the results: a section for each task, then those across tasks.

    Args:
        results: At least one; of several runs of the same thing the last counts.
        notes: What else to say at the beginning.
        with_published: Show published figures beside them.
        tsne: Methods of which test images are to be mapped.
        stores: Where their stores lie.
        per_class: Show mean per-class accuracy, too, whatever is published of the datasets.

    Raises:
        UserError: A method to map that none of the results is of.
    """
    rows = cells(results)
    zero_shot = {row: by for row, by in rows.items() if row.setting == "zero-shot"}
    sections = []
    for task, here in tasks(rows).items():
        made = section(task, here, zero_shot, per_class or shows_per_class(here))
        add_classes(made, here)
        add_label_tables(made, here)
        sections.append(made)
    sections.sort(key=lambda made: _rank(made.title))
    if with_published:
        sections.append(published_section(rows, published.load()))
    residuals = residual_section(rows, zero_shot)
    if residuals is not None:
        sections.append(residuals)
    if tsne:
        from fewshot.report.embedding import maps_section

        sections.append(maps_section(rows, tsne, stores or Path("features")))
    latest = (r for by in rows.values() for group in by.values() for r in group)
    said = [_summary(results, rows), *notes, *different_images(latest)]
    return Report(_title(rows), said, sections)


def _rank(title: str) -> int:
    """The place of a section: few shots first; zero-shot, which is in all curves, last."""
    return 0 if title.startswith("few-shot") else 2 if title.startswith("zero-shot") else 1


def _title(rows: Cells) -> str:
    datasets = sorted({row.dataset for row in rows})
    few = ", ".join(datasets) if len(datasets) <= 4 else f"{len(datasets)} datasets"
    return f"Results on {few}"


def _summary(results: Sequence[Result], rows: Cells) -> str:
    counted = sum(len(group) for by in rows.values() for group in by.values())
    again = len(results) - counted
    versions = ", ".join(sorted({r.version for r in results}))
    repeated = f" ({again} more were run again later)" if again else ""
    methods = sorted({row.method for row in rows})
    return (
        f"{count(counted, 'result')}{repeated} of {count(len(methods), 'method')} on "
        f"{count(len({row.dataset for row in rows}), 'dataset')}, by fewshot {versions}."
    )


def main_tables(report: Report, form: str) -> str:
    """The tables that matter most, in one of `FORMATS`, each under its title.

    Raises:
        UserError: No such form.
    """
    if form not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}; got {form!r}")
    parts = []
    for part in report.sections:
        for name, block in part.blocks.items():
            if name in MAIN and isinstance(block, Table):
                title = f"{part.title}: {block.title[:1].lower()}{block.title[1:]}"
                parts.append(f"{_heading(title, form)}\n{FORMATS[form](block)}")
    return "\n\n".join(parts)


def _heading(title: str, form: str) -> str:
    return {"md": f"## {title}\n", "latex": f"% {title}"}.get(form, f"# {title}")


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.html, each table in every form, and each drawing as PNG and SVG.

    Returns:
        What was written.
    """
    written = [write_page(report, folder / "report.html")]
    for part in report.sections:
        for name, block in part.blocks.items():
            written += _write_block(block, folder, slug(f"{part.title} {name}"))
    return written


def write_page(report: Report, path: Path) -> Path:
    """Write the page, which needs nothing but itself."""
    _write_text(path, page(report))
    return path


def _write_block(block: ReportBlock, folder: Path, stem: str) -> list[Path]:
    if isinstance(block, Table):
        tables = {f"tables/{stem}{SUFFIXES[form]}": FORMATS[form] for form in SUFFIXES}
        for name, form in tables.items():
            _write_text(folder / name, form(block) + "\n")
        return [folder / name for name in tables]
    from fewshot.results.plots import accuracy_against_shots, class_maps, scatter

    figures = [folder / "figures" / f"{stem}{suffix}" for suffix in (".png", ".svg")]
    for path in figures:
        if isinstance(block, Curves):
            accuracy_against_shots(block.series, block.levels, block.title, path)
        elif isinstance(block, Scatter):
            scatter(block.points, block.title, block.x, block.y, path, log=block.log)
        else:
            class_maps(block.panels, block.labels, block.names, block.title, path)
    return figures


def _write_text(path: Path, content: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
