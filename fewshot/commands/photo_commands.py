"""From photos to an adapter and back: `auto`, `predict`, `export`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cache.errors import UserError
from fewshot.commands.options import (
    COMPUTING,
    DATA,
    DEFAULT_MODEL,
    MAX_PIXELS,
    OUTPUT,
    SEED,
    AdapterArgument,
    AdapterModelOption,
    DeviceOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    RehashOption,
    StoreOption,
    WorkersOption,
)
from fewshot.commands.parsing import parse_names, parse_shard
from fewshot.commands.terminal import say, show


def auto(
    photos: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Class folders, or a table of paths and labels."),
    ],
    model: ModelOption = DEFAULT_MODEL,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B[,…]|quick|best",
            help="Choose among these models instead of --model; quick and best are models that "
            "are on this machine and encode the photos within 5 minutes or 2 hours.",
        ),
    ] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(
            "--unlabeled",
            "--unlabelled",
            help="Folder of photos without labels. [default: FOLDER/unlabeled]",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="M[,M…]", help="Methods to try. [default: those practical for this many photos]"
        ),
    ] = None,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Try methods to the end that cannot win any more, too."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [default: runs/auto/NAME]")
    ] = None,
    store: StoreOption = None,
    seed: Annotated[int, typer.Option(*SEED, help="Random seed for folds and training.")] = 1,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    rehash: RehashOption = False,
) -> None:
    """Choose, test and save a classifier of labeled photos.

    Writes an adapter, and an HTML report of how good it is.
    """
    from fewshot.automatic.pipeline import auto as run

    outcome = run(
        photos,
        model=model,
        models=parse_names(models),
        out=out,
        store=store,
        unlabeled=unlabeled,
        methods=parse_names(methods),
        thorough=thorough,
        device=device,
        precision=precision,
        seed=seed,
        workers=workers,
        max_pixels=max_pixels,
        rehash=rehash,
        say=say,
    )
    show(outcome.summary())


def predict(
    adapter: AdapterArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE|FOLDER|PATTERN|-…", help="Images to classify; - reads paths from stdin."
        ),
    ] = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="STORE.h5",
            help="Classify the images of this store by their features instead: no image is read. "
            "For an adapter of two models, repeat it with the other's store.",
            rich_help_panel=DATA,
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="With --store: this split alone.", rich_help_panel=DATA),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write to, .csv, .jsonl or .parquet; with --store also a folder, written "
            "in parts, so that the same command continues where it stopped.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="With --store and a folder: write only part I of N, for N processes.",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of most probable classes to print.")] = 5,
    form: Annotated[
        Literal["table", "csv", "jsonl", "parquet"],
        typer.Option("--format", help="Format of the output; parquet of a folder's parts only."),
    ] = "table",
    min_confidence: Annotated[
        float,
        typer.Option(
            metavar="P", help="Print `unknown` if the best class is less probable than this (0..1)."
        ),
    ] = 0.0,
    unknown: Annotated[
        bool,
        typer.Option(
            "--unknown", help="Print `unknown`, too, for images that are like none of the classes."
        ),
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Print the set of classes that holds the true one with this probability, "
            "such as 0.9.",
        ),
    ] = None,
    model: AdapterModelOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward pass.", rich_help_panel=COMPUTING)
    ] = 64,
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Classify images with a saved adapter.

    ADAPTER may also be the folder that `fewshot export --to onnx` wrote. Unreadable images are
    reported and skipped.
    """
    if images and adapter.is_dir():
        from fewshot.adapters.exported_folder import classify_exported

        unused = {
            "--store": bool(store), "--split": split is not None,
            "--shard": shard is not None, "--out": out is not None,
            f"--format {form}": form not in ("table", "jsonl"),
            "--min-confidence": min_confidence > 0, "--unknown": unknown,
            "--coverage": coverage is not None, "--model": model is not None,
            "--device": device != "auto", "--precision": precision != "auto",
        }  # fmt: skip
        classify_exported(
            adapter, images, top=top, form=form, out=sys.stdout, say=say, unused=unused
        )
        return
    if store and images:
        raise UserError("give images or --store, not both")
    if not store and (split or shard):
        raise UserError("--split and --shard are of --store; give a store, or leave them out")
    if not store and not images:
        raise UserError(
            "nothing to classify; give files, folders or patterns such as 'photos/*.jpg', or "
            "--store STORE.h5"
        )
    from fewshot.adapters.image_results import PredictionForm

    asked = PredictionForm(top, min_confidence, unknown, coverage)
    if store:
        from fewshot.adapters.stored_images import classify_stored

        done = classify_stored(
            adapter, store, asked, out=sys.stdout, say=say, split=split, to=out,
            shard=parse_shard(shard), form=form,
        )  # fmt: skip
        say(str(done))
        return
    from cache.extract import default_workers
    from fewshot.adapters.predict import classify_images

    done = classify_images(
        adapter,
        images or (),
        asked,
        out=sys.stdout,  # taken here: within a bar, rich sends what sys.stdout gets to stderr
        to=out,
        say=say,
        stdin=sys.stdin.buffer,
        form=form,
        model=model,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers or default_workers(),
        max_pixels=max_pixels,
    )
    say(str(done))


def export(
    adapter: AdapterArgument,
    to: Annotated[
        Literal["open_clip", "onnx", "clip-lora", "peft", "hub"],
        typer.Option(
            help="A folder that open_clip loads, an ONNX model from pixels to probabilities, the "
            "file of CLIP-LoRA's own code, LoRA pairs as PEFT has them, or a folder for the "
            "Hugging Face hub."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to. [default: ADAPTER-TARGET]"),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="With --to hub: upload the folder to this repository, private if it is new.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    model: AdapterModelOption = None,
) -> None:
    """Convert an adapter for other programs.

    The result is checked against the adapter, and has a model card.
    """
    from fewshot.adapters.export.exporting import export as write
    from fewshot.adapters.hub import push as upload
    from fewshot.adapters.hub import require_token

    if push is not None:
        if to != "hub":
            raise UserError("--push uploads a folder for the hub; give --to hub, or leave it out")
        require_token(push)
    folder = write(adapter, to, out, model=model)
    show(str(folder))
    if push is not None:
        say(f"pushed to {upload(folder, push)}")
