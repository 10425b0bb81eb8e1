"""`train`: adapt with gradients through the model, and test."""

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UserError
from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
    DataRoot,
    Dataset,
    ManifestFile,
    MaxPixels,
    Model,
    StoreRoot,
    parse_pairs,
)
from fewshot.commands.terminal import say


def train(
    method: Annotated[str, typer.Argument(help="Its name; `fewshot methods` lists them.")],
    dataset: Dataset = None,
    manifest: ManifestFile = None,
    data_root: DataRoot = None,
    model: Model = DEFAULT_MODEL,
    shots: Annotated[int, typer.Option(min=1, help="Images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="What draws them and orders the batches.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set a hyper-parameter."),
    ] = None,
    official: Annotated[
        bool,
        typer.Option("--official", help="The published recipe to the letter, few shots included."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    store: StoreRoot = None,
    crop_scale: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Least and greatest share of an image in a crop. [default: the paper's]"),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror half of the crops. [default: the paper's]"),
    ] = None,
    save_memory: Annotated[
        bool,
        typer.Option("--save-memory", help="Compute activations twice instead of keeping them."),
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Encode images even where a store has their features.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where checkpoints and results go.")] = Path("runs"),
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Keep what was trained, for `predict`."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint of the same run.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as a JSON object, not a table.")
    ] = False,
) -> None:
    """Adapt with gradients through the model, and test: CoOp, CLIP-LoRA and their like."""
    from cache.extract import default_workers
    from cache.loading import load
    from cache.source import find
    from fewshot.endtoend.display import shown
    from fewshot.endtoend.experiment import checkpoint_path, run, store_of
    from fewshot.endtoend.methods import configure
    from fewshot.results.log import append
    from fewshot.results.summaries import accuracy_table

    if save is not None:
        from fewshot.adapters.adapter import require_suffix

        require_suffix(save)
    fixed = parse_pairs("--set", settings)
    chosen = configure(method, fixed, seed=seed)
    if official and (fixed or crop_scale is not None or flip is not None):
        raise UserError("--official is the published recipe; leave out --set, --crop-scale, --flip")
    if official and not chosen.published:
        raise UserError(
            f"{method} has no published recipe for few shots of CLIP; leave --official out"
        )
    source = find(dataset, manifest, root=data_root, max_pixels=max_pixels)
    features = None if live else store_of(source, model, store)
    if features is not None:
        say(f"using {features.path}")
    asked = (shots, seed, crop_scale, flip, official)
    checkpoint = checkpoint_path(out, chosen, source, model, *asked)
    if checkpoint.exists() and not resume:
        raise UserError(
            f"{checkpoint} is from an earlier start of this run; --resume goes on from it, "
            "removing it begins anew"
        )
    encoder = load(model, device=device, precision=precision)
    steps = chosen.plan(shots, shots * len(source.classnames)).iterations
    with shown(chosen.name, steps, len(source.splits.get("test", ()))) as (watch, advance):
        trained = run(
            chosen,
            encoder,
            source,
            shots=shots,
            seed=seed,
            fixed=list(fixed),
            store=features,
            crop_scale=crop_scale,
            flip=flip,
            official=official,
            save_memory=save_memory,
            checkpoint=checkpoint,
            workers=workers or default_workers(),
            watch=watch,
            advance=advance,
        )
    append(out / "results.jsonl", trained.result)
    print(trained.result.to_json() if as_json else accuracy_table([trained.result]))
    if save is not None:
        from fewshot.adapters.making import of_trained

        adapter = of_trained(trained, chosen, encoder, source, workers=workers or default_workers())
        adapter.save(save)
        say(f"{save}: {adapter.summary()}")
