"""Read results: `compare` two methods, `report` all."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cache.errors import UserError, count
from fewshot.commands.options import SEED, JsonOption, PerClassOption, StoreOption
from fewshot.commands.parsing import parse_ints, parse_names
from fewshot.commands.terminal import say, show


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="First method or predictions file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Second method or predictions file.")],
    results: Annotated[
        Path, typer.Option(help="File of results, or the folder of a benchmark.")
    ] = Path("runs/results.jsonl"),
    dataset: Annotated[
        str | None, typer.Option(metavar="D[,D…]", help="Only these datasets.")
    ] = None,
    shots: Annotated[str | None, typer.Option(metavar="K[,K…]", help="Only these shots.")] = None,
    seed: Annotated[
        str | None, typer.Option(*SEED, metavar="S[,S…]", help="Only these seeds.")
    ] = None,
    as_json: JsonOption = False,
    per_class: PerClassOption = False,
) -> None:
    """Compare two methods image by image, and test significance."""
    from fewshot.results import comparisons

    files = [one for one in (a, b) if one.endswith(".npz")]
    if len(files) == 1:
        raise UserError(f"give two files of predictions or two methods; got one file, {files[0]}")
    if files:
        contests = [comparisons.compare_files(Path(a), Path(b))]
    else:
        contests = comparisons.compare_runs(
            results,
            a,
            b,
            datasets=parse_names(dataset) or (),
            shots=parse_ints("--shots", shots) if shots else (),
            seeds=parse_ints("--seed", seed) if seed else (),
            say=say,
        )
    for i, contest in enumerate(contests):
        if as_json:
            print("\n".join(comparisons.as_json(contest)))
        else:
            print(("\n" if i else "") + comparisons.as_table(contest, per_class=per_class))


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH", help="Files of results, or folders with results.jsonl. [default: runs]"
        ),
    ] = None,
    form: Annotated[
        Literal["text", "md", "latex", "csv"],
        typer.Option("--format", help="Format of the printed tables."),
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write report.html, all tables and all figures to."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="File to write the page alone to.")] = None,
    published: Annotated[
        bool,
        typer.Option("--published/--no-published", help="Show published accuracies too."),
    ] = True,
    tsne: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD[,…]",
            help="Draw t-SNE maps of test images for these.",
        ),
    ] = None,
    store: StoreOption = None,
    per_class: PerClassOption = False,
) -> None:
    """Show results as tables, figures and one HTML page."""
    from cache.location import default_root, require_writable
    from fewshot.report import build as reports

    require_writable(files={"--html": html}, folders={"--out": out})
    read = reports.read(runs or [Path("runs")])
    made = reports.make(
        read.results,
        notes=read.notes,
        with_published=published,
        tsne=parse_names(tsne) or (),
        stores=store or default_root(),
        per_class=per_class,
    )
    for note in made.notes[1:]:
        say(note)
    if out is None and html is None:
        show(reports.main_tables(made, form))
        return
    if html is not None:
        show(str(reports.write_page(made, html)))
    if out is not None:
        written = reports.write(made, out)
        beside = count(len(written) - 1, "file")
        print(f"{written[0]} and {beside} of tables and figures beside it")
