"""`fit`: adapt on stored features, and test."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fewshot.commands.chosen_store import chosen_store
from fewshot.commands.fit_work import (
    SETTINGS,
    at_weight,
    exported,
    one_of_settings,
    refuse_contradictions,
    results_of,
    save_adapter,
)
from fewshot.commands.method_names import require_method
from fewshot.commands.options import (
    DATA,
    FEW_SHOT,
    OUTPUT,
    SEED,
    AdaptFromOption,
    BaseToNewOption,
    BlendOption,
    ImbalanceOption,
    JsonOption,
    KnownOption,
    LogToOption,
    MethodArgument,
    PromptsOption,
    SaveAdapterOption,
    ScoreOption,
    SettingsOption,
    StoredDatasetOption,
    StoreOption,
    SynthesizeOption,
    ThresholdOption,
    TuneOption,
)
from fewshot.commands.parsing import parse_ints, parse_pairs, parse_share, parse_shots
from fewshot.commands.terminal import say


def fit(
    method: MethodArgument = "stack",
    dataset: StoredDatasetOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model whose store to use, or a pair FIRST+SECOND of which the second has the "
            "text. [default: the one extracted last]",
            rich_help_panel=DATA,
        ),
    ] = None,
    shots: Annotated[
        str,
        typer.Option(
            metavar="K[,K…]|all", help="Training images per class.", rich_help_panel=FEW_SHOT
        ),
    ] = "16",
    seed: Annotated[
        str,
        typer.Option(
            *SEED,
            metavar="S[,S…]",
            help="Random seed for drawing the few shots; published results use 1,2,3.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = "1",
    tune: TuneOption = None,
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="Follow the recipe of the method's paper: settings, views and search; the test "
            "images have no say in it.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = False,
    settings: SettingsOption = None,
    pair_weight: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help="Weight of the first model of a pair, from 0 to below 1. "
            "[default: chosen by cross-validation]",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    prompts: PromptsOption = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            help="Read the few shots from this file instead of drawing them.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    export_sample: Annotated[
        Path | None,
        typer.Option(help="Write the few shots drawn to this file.", rich_help_panel=OUTPUT),
    ] = None,
    base_to_new: BaseToNewOption = False,
    generalized: Annotated[
        bool,
        typer.Option(
            "--generalized",
            help="Learn the first half of the classes, and test all classes together.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = False,
    test_on: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET[,…]",
            help="Learn --dataset, and test on these datasets.",
            rich_help_panel=FEW_SHOT,
        ),
    ] = None,
    source: AdaptFromOption = None,
    threshold: ThresholdOption = None,
    known: KnownOption = None,
    score: ScoreOption = None,
    synthesize: SynthesizeOption = None,
    imbalance: ImbalanceOption = None,
    blend: BlendOption = None,
    save_predictions: Annotated[
        Path | None,
        typer.Option(
            help="Folder to save predictions in, for `fewshot compare`.", rich_help_panel=OUTPUT
        ),
    ] = None,
    save: SaveAdapterOption = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=1e-4,
            max=1e4,
            help="Temperature of the saved adapter's probabilities. "
            "[default: found by cross-validation]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    store: StoreOption = None,
    results: Annotated[
        Path,
        typer.Option(help="File to append results to, one JSON line each.", rich_help_panel=OUTPUT),
    ] = Path("runs/results.jsonl"),
    log_to: LogToOption = "none",
    as_json: JsonOption = False,
) -> None:
    """Fit a method on a few labeled images per class, and test it."""
    from cache.location import require_writable
    from fewshot.open_set import parse_known
    from fewshot.protocol import OFFICIAL, Protocol
    from fewshot.results.log import Result, append
    from fewshot.results.loggers import RunLogger
    from fewshot.results.summaries import accuracy_table, class_table
    from fewshot.sample_file import read_sample
    from fewshot.settings import configure
    from fewshot.tables import text

    given = one_of_settings(
        base_to_new=base_to_new,
        generalized=generalized,
        test_on=test_on,
        source=source,
        known=known,
    )
    refuse_contradictions(
        given,
        sample=sample,
        export_sample=export_sample,
        uneven=bool(imbalance) or shots == "all",
        official=official,
        tune=tune,
        threshold=threshold,
        score=score,
        save=save,
        temperature=temperature,
    )
    require_method(method, "fit")
    texts = parse_pairs("--set", settings)
    chosen = configure(method, texts)  # a mistake in it shows before a store is looked for
    require_writable(
        files={"--results": results, "--save": save, "--export-sample": export_sample},
        folders={"--save-predictions": save_predictions},
    )
    logger = RunLogger(log_to, results.parent, say)
    asked = Protocol(
        tune=OFFICIAL if official else tune,
        fixed={name: getattr(chosen, name) for name in texts},
        prompt_set=prompts,
        imbalance=imbalance,
        setting=SETTINGS[given] if given else "few-shot",
        known=None if known is None else parse_known(known, *([dataset] if dataset else [])),
        score=score or "mcm",
        threshold=0.5 if threshold is None else threshold,
        blend="auto" if blend is None else parse_share(blend),
        synthesize=synthesize,
    )
    every = [
        replace(asked, shots=k, seed=s)
        for k in parse_shots(shots)
        for s in parse_ints("--seed", seed)
    ]
    opened = at_weight(chosen_store(store, dataset, model), pair_weight)
    if sample is not None:
        every = [replace(asked, sample=read_sample(sample, opened))]
    if export_sample is not None:
        every = exported(every, opened, export_sample)
    produced: Iterable[Result]
    if save is None:
        others = test_on.split(",") if test_on else ()
        produced = results_of(
            chosen,
            every,
            opened,
            source=chosen_store(store, source, opened.model) if source else None,
            targets=[chosen_store(store, name, opened.model) for name in others],
            predictions=save_predictions,
        )
    else:
        saved, produced = save_adapter(
            save, method, every, opened, predictions=save_predictions, temperature=temperature
        )
    done = []
    for result in produced:
        append(results, result)
        logger.result(result)
        done.append(result)
        if as_json:
            print(result.to_json(), flush=True)
    if done and not as_json:
        print(accuracy_table(done))
        if len(done) == 1 and done[0].by_class is not None:
            print(f"\n{text(class_table(done[0], opened.classnames))}")
    if save is not None:
        say(f"{save}: {saved.summary()}")
