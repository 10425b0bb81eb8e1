"""`fit`: adapt on stored features, and test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from cache.errors import UserError
from fewshot.commands.options import StoreRoot, parse_ints, parse_pairs
from fewshot.commands.terminal import say

if TYPE_CHECKING:
    from cache.store import FeatureStore
    from fewshot.sampling import Sample


class Ask(TypedDict):
    """What all protocols are asked alike."""

    shots: int
    seed: int
    tune: str | None
    fixed: dict[str, str]
    prompt_set: str | None
    save: Path | None


def fit(
    method: Annotated[str, typer.Argument(help="Its name; `fewshot methods` lists them.")],
    dataset: Annotated[
        str | None, typer.Option(help="Whose store. [default: the one extracted last]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model's store. [default: the one extracted last]")
    ] = None,
    shots: Annotated[
        str, typer.Option(metavar="K[,K…]|all", help="Images per class, or all there are.")
    ] = "16",
    seed: Annotated[
        str, typer.Option(metavar="S[,S…]", help="What draws them; published results: 1,2,3.")
    ] = "1",
    tune: Annotated[
        str | None,
        typer.Option(help="none, cv, val or full-val. [default: cv, and none at one shot]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Fix a hyper-parameter."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Which prompt set of the store. [default: templates]")
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(help="Take the few shots from this file instead of drawing.")
    ] = None,
    export_sample: Annotated[
        Path | None, typer.Option(help="Write the few shots that are drawn to this file.")
    ] = None,
    base_to_new: Annotated[
        bool, typer.Option("--base-to-new", help="Learn half of the classes, test both halves.")
    ] = False,
    test_on: Annotated[
        str | None,
        typer.Option(metavar="DATASET[,…]", help="Test on these instead, having learned this one."),
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(help="Unequal classes: long-tail:100, step:10, or natural (all images)."),
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(help="A folder for predictions, for `fewshot compare`.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Keep what was fitted, for `predict`."),
    ] = None,
    store: StoreRoot = None,
    results: Annotated[
        Path, typer.Option(help="Where results are appended, one JSON line each.")
    ] = Path("runs/results.jsonl"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per result, not a table.")
    ] = False,
) -> None:
    """Adapt from a few labeled images per class, and test."""
    from cache.store import FeatureStore
    from fewshot.evaluation import base_to_new as evaluate_base_to_new
    from fewshot.evaluation import evaluate, transfer
    from fewshot.results.log import append
    from fewshot.results.summaries import accuracy_table
    from fewshot.settings import configure

    if shots == "all":
        shots, imbalance = "0", imbalance or "natural"
    others = [flag for flag in (base_to_new, test_on, imbalance) if flag]
    if len(others) > 1 or (others and (sample or export_sample)):
        raise UserError(
            "--base-to-new, --test-on and --imbalance exclude one another, and --sample and "
            "--export-sample with them; give one"
        )
    fixed = parse_pairs("--set", settings)
    chosen = configure(method, fixed)  # a mistake in it shows before a store is looked for
    draws = [(k, s) for k in parse_ints("--shots", shots) for s in parse_ints("--seed", seed)]
    opened = FeatureStore.open(_store(store, dataset, model))
    targets = [
        FeatureStore.open(_store(store, name, opened.model))
        for name in (test_on.split(",") if test_on else ())
    ]
    chosen = configure(method, fixed, logit_scale=opened.logit_scale)
    if save is None and not targets and "test" not in opened.splits:
        raise UserError(
            f"{opened.path} has no test split, so there is nothing to report; keep a classifier "
            "of it with --save FILE, or extract without --all-train"
        )
    few = _sample(opened, draws, sample, export_sample)
    if save is not None:
        if base_to_new or targets or len(draws) > 1:
            raise UserError(
                "--save keeps one adapter of all classes; give one --shots and one --seed, "
                "and neither --base-to-new nor --test-on"
            )
        from fewshot.adapters.making import fit_and_save

        [(k, s)] = draws
        saved, result = fit_and_save(
            opened, chosen, save, shots=k, seed=s, tune=tune, fixed=fixed, prompt_set=prompts,
            sample=few, imbalance=imbalance, predictions=save_predictions,
        )  # fmt: skip
        if result is not None:
            append(results, result)
            print(result.to_json() if as_json else accuracy_table([result]))
        say(f"{save}: {saved.summary()}")
        return
    if few is not None or not chosen.needs_support(shots=1):
        draws = draws[:1]
    done = []
    for k, s in draws:
        ask = Ask(
            shots=k, seed=s, tune=tune, fixed=fixed, prompt_set=prompts, save=save_predictions
        )
        if base_to_new:
            new = [evaluate_base_to_new(opened, chosen, **ask)]
        elif targets:
            new = transfer(opened, targets, chosen, **ask)
        else:
            new = [evaluate(opened, chosen, sample=few, imbalance=imbalance, **ask)]
        for result in new:
            append(results, result)
            done.append(result)
            if as_json:
                print(result.to_json(), flush=True)
    if not as_json:
        print(accuracy_table(done))


def _store(root: Path | None, dataset: str | None, model: str | None) -> Path:
    """The store that is meant; where that takes a choice, says which."""
    from cache.location import default_root, find_store

    path, chosen = find_store(root or default_root(), dataset, model)
    if chosen or dataset is None:
        say(f"using {path}")
    return path


def _sample(
    store: "FeatureStore", draws: list[tuple[int, int]], given: Path | None, export: Path | None
) -> "Sample | None":
    """The few shots of a file, or those that are to be written to one."""
    from fewshot.sample_file import read_sample, write_sample
    from fewshot.sampling import draw

    if given is not None and export is not None:
        raise UserError("--sample and --export-sample exclude each other; copy the file instead")
    if given is not None:
        return read_sample(given, store)
    if export is None:
        return None
    if len(draws) > 1:
        raise UserError("--export-sample writes one sample; give one --shots and one --seed")
    val = store.labels("val") if "val" in store.splits else None
    [(shots, seed)] = draws
    few = draw(store.labels("train"), store.classnames, shots=shots, seed=seed, val_labels=val)
    write_sample(export, few, store)
    return few
