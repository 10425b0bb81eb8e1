"""`fit`: adapt on stored features, and test."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import UserError
from fewshot.commands.chosen_store import chosen_store
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

if TYPE_CHECKING:
    from cache.store import FeatureStore
    from fewshot.protocol import Protocol
    from fewshot.results.log import Result


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
    from cache.pair import Pair
    from fewshot.cross_dataset import transfer
    from fewshot.domain_adaptation import adapt
    from fewshot.evaluation import evaluate
    from fewshot.open_set import parse_known
    from fewshot.protocol import OFFICIAL, Protocol, Setting
    from fewshot.results.log import append
    from fewshot.results.loggers import RunLogger
    from fewshot.results.summaries import accuracy_table, class_table
    from fewshot.sample_file import read_sample
    from fewshot.settings import configure
    from fewshot.tables import text

    tested = {
        "--base-to-new": base_to_new,
        "--generalized": generalized,
        "--test-on": bool(test_on),
        "--source": source is not None,
        "--known": known is not None,
    }
    given = [option for option, one in tested.items() if one]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude one another; give one")
    if source is not None and (sample or official):
        raise UserError("--source excludes --sample and --official; give one")
    if threshold is not None and source is None:
        raise UserError("--threshold is for domain adaptation; give --source as well")
    if score is not None and known is None:
        raise UserError("--score separates known images from unknown ones; give --known as well")
    if (sample or export_sample) and (given or imbalance or shots == "all"):
        raise UserError(
            "--sample and --export-sample are of equal classes, all of them tested: they and "
            f"{', '.join(tested)}, --imbalance and --shots all exclude one another; give one"
        )
    require_method(method, "fit")
    if official and tune is not None:
        raise UserError("--official decides itself what is tuned on; leave --tune out")
    texts = parse_pairs("--set", settings)
    chosen = configure(method, texts)  # a mistake in it shows before a store is looked for
    require_writable(
        {
            "--results": results,
            "--save": save,
            "--save-predictions": save_predictions,
            "--export-sample": export_sample,
        }
    )
    logger = RunLogger(log_to, results.parent, say)
    setting: Setting = "cross-dataset" if test_on else "few-shot"
    if source is not None:
        setting = "domain-adaptation"
    if base_to_new or generalized:
        setting = "base-to-new" if base_to_new else "generalized"
    asked = Protocol(
        tune=OFFICIAL if official else tune,
        fixed={name: getattr(chosen, name) for name in texts},
        prompt_set=prompts,
        imbalance=imbalance,
        setting=setting,
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
    opened = chosen_store(store, dataset, model)
    if pair_weight is not None:
        if not isinstance(opened, Pair):
            raise UserError(
                "--pair-weight shares out the cosine between two models; give --model FIRST+SECOND"
            )
        opened = opened.at(pair_weight)
    targets = [
        chosen_store(store, name, opened.model) for name in (test_on.split(",") if test_on else ())
    ]
    learned = chosen_store(store, source, opened.model) if source else None
    if sample is not None and export_sample is not None:
        raise UserError("--sample and --export-sample exclude each other; copy the file instead")
    if sample is not None:
        every = [replace(asked, sample=read_sample(sample, opened))]
    if export_sample is not None:
        every = [_exported(every, opened, export_sample)]
    done: list[Result] = []
    summary = ""

    def note(result: "Result") -> None:
        append(results, result)
        logger.result(result)
        done.append(result)
        if as_json:
            print(result.to_json(), flush=True)

    if save is not None:
        if asked.setting != "few-shot" or len(every) > 1:
            raise UserError(
                "--save keeps one adapter of all classes; give one --shots and one --seed, "
                f"and none of {', '.join(tested)}"
            )
        from fewshot.adapters.fitted_adapter import fit_and_save

        saved, result = fit_and_save(
            opened, method, save, every[0], predictions=save_predictions, temperature=temperature
        )
        if result is not None:
            note(result)
        summary = f"{save}: {saved.summary()}"
    else:
        alike = [one for one in every if not one.support_for(chosen)]  # whatever its shots and seed
        for one in [one for one in every if one not in alike[1:]]:
            if learned is not None:
                note(adapt(learned, opened, method, one, save=save_predictions))
            elif targets:
                for result in transfer(opened, targets, method, one, save=save_predictions):
                    note(result)
            else:
                note(evaluate(opened, method, one, save=save_predictions))
    if done and not as_json:
        print(accuracy_table(done))
        if len(done) == 1 and done[0].by_class is not None:
            print(f"\n{text(class_table(done[0], opened.classnames))}")
    if summary:
        say(summary)


def _exported(every: list["Protocol"], store: "FeatureStore", path: Path) -> "Protocol":
    """The one protocol there is, with the sample that it draws, which is written to the file."""
    from fewshot.sample_file import write_sample

    if len(every) > 1:
        raise UserError("--export-sample writes one sample; give one --shots and one --seed")
    val = store.labels("val") if "val" in store.splits else None
    few = every[0].draw(store.labels("train"), store.classnames, val_labels=val)
    one = replace(every[0], sample=few)
    write_sample(path, few, store)
    return one
