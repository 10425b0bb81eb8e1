"""`bench`: methods on datasets at several shots and seeds."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewshot.commands.options import (
    COMPUTING,
    DATA,
    FEW_SHOT,
    MAX_PIXELS,
    OUTPUT,
    SEED,
    BlendOption,
    DataRootOption,
    DeviceOption,
    ImbalanceOption,
    KnownOption,
    LogToOption,
    MaxPixelsOption,
    PerClassOption,
    PrecisionOption,
    ScoreOption,
    StoreOption,
    SynthesizeOption,
    TuneOption,
)
from fewshot.commands.parsing import parse_ints, parse_names, parse_share
from fewshot.commands.terminal import say
from fewshot.commands.training_options import (
    FlipOption,
    ImageCropScaleOption,
    OfficialOption,
    SaveMemoryOption,
)


def bench(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with these options as keys; options given here win."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME[,…]", help="Methods. [default: all methods of `fewshot fit`]"),
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,…]",
            help="Datasets whose stores to use. [default: all]",
            rich_help_panel=DATA,
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,…]",
            help="Models whose stores to use. [default: all]",
            rich_help_panel=DATA,
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            metavar="K[,K…]",
            help="Training images per class. [default: 1,2,4,8,16]",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            *SEED,
            metavar="S[,S…]",
            help="Random seeds for drawing the few shots. [default: 1,2,3]",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    tune: TuneOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[METHOD.]NAME=VALUE[,…]",
            help="Run with each of these values of a hyper-parameter; several options give all "
            "combinations.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="SET[,…]",
            help="Prompt sets of the stores. [default: templates]",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    protocol: Annotated[
        Literal[
            "few-shot",
            "base-to-new",
            "generalized",
            "domain-generalization",
            "cross-dataset",
            "open-set",
            "domain-adaptation",
            "multi-label",
        ]
        | None,
        typer.Option(help="What to measure. [default: few-shot]", rich_help_panel=FEW_SHOT),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Dataset to train on, for domain-generalization, cross-dataset and "
            "domain-adaptation; --datasets are the test sets.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    known: KnownOption = None,
    score: ScoreOption = None,
    synthesize: SynthesizeOption = None,
    imbalance: ImbalanceOption = None,
    blend: BlendOption = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes; with 2 or more, a crash loses only the run it happens in. "
            "[default: 1]",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    engine: Annotated[
        Literal["process", "ray"] | None,
        typer.Option(
            help="Where --jobs run: on this machine, or on a Ray cluster whose nodes see the same "
            "stores. [default: process]",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results. [default: runs/bench]", rich_help_panel=OUTPUT),
    ] = None,
    store: StoreOption = None,
    predictions: Annotated[
        bool | None,
        typer.Option(
            "--predictions/--no-predictions",
            help="Save predictions, for `fewshot compare`. [default: predictions]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    data_root: DataRootOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    crop_scale: ImageCropScaleOption = None,
    flip: FlipOption = None,
    official: OfficialOption = False,
    save_memory: SaveMemoryOption = False,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    per_class: PerClassOption = False,
    log_to: LogToOption = "none",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs that are not done, and stop.")
    ] = False,
) -> int:
    """Fit methods on datasets at several shots and seeds.

    Prints mean accuracies. Runs that are done are skipped, so the same command continues after a
    stop. Runs that fail are reported at the end, with exit code 1; they do not stop the others.
    --data-root, --device, --precision, --crop-scale, --flip, --official, --save-memory and
    --max-pixels are for methods of `fewshot train`.
    """
    from cache.location import require_writable
    from fewshot.bench.benchmark import pending, run
    from fewshot.bench.config import configured, parse_settings
    from fewshot.bench.mean_table import mean_table
    from fewshot.bench.plan import plan
    from fewshot.bench.trained import TrainOptions
    from fewshot.results.loggers import RunLogger
    from fewshot.tables import text

    train = TrainOptions(
        data_root=data_root,
        device=device,
        precision=precision,
        crop_scale=crop_scale,
        flip=flip,
        official=official,
        save_memory=save_memory,
        max_pixels=max_pixels,
    )
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
            "known": known,
            "score": score,
            "synthesize": synthesize,
            "imbalance": imbalance,
            "blend": None if blend is None else parse_share(blend),
            "jobs": jobs,
            "engine": engine,
            "out": out,
            "store": store,
            "predictions": predictions,
            "train": train.given(),
        },
        config,
    )
    planned = plan(asked)
    if dry_run:
        for task in pending(asked, planned, say):
            print(*(cell.run.label for cell in task), sep="\n")
        return 0
    require_writable(folders={"--out": asked.out})
    outcome = run(asked, planned, say, RunLogger(log_to, asked.out, say).result)
    print(text(mean_table(outcome.runs, per_class=per_class)))
    return 1 if outcome.failures else 0
