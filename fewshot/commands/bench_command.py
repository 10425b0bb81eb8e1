"""`bench`: methods on datasets at several shots and seeds."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot.commands.options import StoreRoot, parse_ints, parse_names
from fewshot.commands.terminal import say


def bench(
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file with these options as keys; flags override it."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="NAME[,…]", help="Names. [default: all]")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(metavar="NAME[,…]", help="Whose stores. [default: all]")
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="NAME[,…]", help="Which models' stores. [default: all]")
    ] = None,
    shots: Annotated[
        str | None, typer.Option(metavar="K[,K…]", help="Images per class. [default: 1,2,4,8,16]")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="S[,S…]", help="What draws them. [default: 1,2,3]")
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="none, cv, val or full-val. [default: cv, and none at one shot]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD.]NAME=VALUE[,…]",
            help="Fix a hyper-parameter at each value in turn; several give all combinations.",
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="SET[,…]", help="Prompt sets. [default: templates]")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="few-shot, base-to-new, domain-generalization or cross-dataset. "
            "[default: few-shot]"
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="What the last two learn; --datasets are then tested.")
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(help="Unequal classes: long-tail:100, step:10, or natural (all images)."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes; of 2 or more, one that dies costs its cell alone. [default: 1]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of results. [default: runs/bench]")
    ] = None,
    store: StoreRoot = None,
    predictions: Annotated[
        bool | None,
        typer.Option(
            "--predictions/--no-predictions",
            help="Save them, for `fewshot compare`. [default: predictions]",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells that are not done, and stop.")
    ] = False,
) -> int:
    """Run methods on datasets at several shots and seeds, and print the means.

    What is done already is skipped, so the same command goes on after a stop. Cells that fail are
    reported at the end, with exit code 1; the others run.
    """
    from fewshot.bench.benchmark import pending, run
    from fewshot.bench.config import configured, parse_settings
    from fewshot.bench.mean_table import mean_table
    from fewshot.bench.plan import plan
    from fewshot.tables import text

    asked = configured(
        {
            "methods": parse_names(methods),
            "datasets": parse_names(datasets),
            "models": parse_names(models),
            "shots": None if shots is None else tuple(parse_ints("--shots", shots)),
            "seeds": None if seeds is None else tuple(parse_ints("--seeds", seeds)),
            "tune": tune,
            "settings": parse_settings(settings or ()),
            "prompts": parse_names(prompts),
            "protocol": protocol,
            "source": source,
            "imbalance": imbalance,
            "jobs": jobs,
            "out": out,
            "store": store,
            "predictions": predictions,
        },
        config,
    )
    planned = plan(asked)
    if dry_run:
        for task in pending(asked, planned, say):
            print(*(cell.run.label for cell in task), sep="\n")
        return 0
    outcome = run(asked, planned, say)
    print(text(mean_table(outcome.runs)))
    return 1 if outcome.failures else 0
