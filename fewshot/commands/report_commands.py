"""Read results: `compare` two methods, `report` all."""

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UserError
from fewshot.commands.options import StoreRoot, parse_ints, parse_names
from fewshot.commands.terminal import say, show


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A file of predictions, or a method.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, or another's.")],
    results: Annotated[
        Path, typer.Option(help="Where the methods' results are: a file, or a bench's folder.")
    ] = Path("runs/results.jsonl"),
    dataset: Annotated[
        str | None, typer.Option(metavar="D[,D…]", help="Only these datasets.")
    ] = None,
    shots: Annotated[str | None, typer.Option(metavar="K[,K…]", help="Only these shots.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="S[,S…]", help="Only these seeds.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON objects, one per line of the table.")
    ] = False,
) -> None:
    """Compare predictions image by image: is A better than B by more than chance?"""
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
        )
    for i, contest in enumerate(contests):
        if as_json:
            print("\n".join(comparisons.as_json(contest)))
        else:
            print(("\n" if i else "") + comparisons.as_table(contest))


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of results, or folders of results.jsonl. [default: runs]"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="Of the tables printed: text, md, latex or csv.")
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for report.html, and every table and drawing as files."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Where to write the page alone.")] = None,
    published: Annotated[
        bool,
        typer.Option("--published/--no-published", help="Show published figures beside ours."),
    ] = True,
    tsne: Annotated[
        str | None,
        typer.Option(metavar="METHOD[,…]", help="Map test images before and after these."),
    ] = None,
    store: StoreRoot = None,
) -> None:
    """Tables, drawings and one HTML page of results, beside published ones."""
    from cache.location import default_root
    from fewshot.report import build as reports

    read = reports.read(runs or [Path("runs")])
    made = reports.make(
        read.results,
        notes=read.notes,
        with_published=published,
        tsne=parse_names(tsne) or (),
        stores=store or default_root(),
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
        print(f"{written[0]} and {len(written) - 1} files of tables and figures beside it")
