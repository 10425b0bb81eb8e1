"""From photos to an adapter and back: `auto`, `predict`, `export`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
    MaxPixels,
    Model,
    StoreRoot,
    parse_names,
)
from fewshot.commands.terminal import say, show


def auto(
    photos: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Class folders, or a table of path and label."),
    ],
    model: Model = DEFAULT_MODEL,
    unlabeled: Annotated[
        Path | None,
        typer.Option(
            "--unlabeled",
            "--unlabelled",
            help="A folder of photos without labels. [default: FOLDER/unlabeled]",
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="M[,M…]", help="Try these. [default: those that suit]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write into. [default: runs/auto/NAME]")
    ] = None,
    store: StoreRoot = None,
    seed: Annotated[int, typer.Option(help="Of folds and training.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Find what suits your labeled photos, how good it is, and keep it: one page tells all."""
    from fewshot.automatic.pipeline import auto as run

    outcome = run(
        photos,
        model=model,
        out=out,
        store=store,
        unlabeled=unlabeled,
        methods=parse_names(methods),
        device=device,
        precision=precision,
        seed=seed,
        workers=workers,
        max_pixels=max_pixels,
        say=say,
    )
    show(outcome.summary())


def predict(
    adapter: Annotated[Path, typer.Argument(help="An adapter's file, as `fit --save` writes.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|PATTERN|-…", help="What to classify; - reads paths from stdin."
        ),
    ],
    top: Annotated[int, typer.Option(help="Classes told of each image.")] = 5,
    form: Annotated[str, typer.Option("--format", help="table, csv or jsonl.")] = "table",
    min_confidence: Annotated[
        float, typer.Option(metavar="P", help="Less probable than this (0..1) is `unknown`.")
    ] = 0.0,
    model: Annotated[
        str | None,
        typer.Option(help="Where the adapter's model is now. [default: as it was called then]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (fp32 on a CPU, fp16 on CUDA), fp32, bf16 or fp16.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: per core]")
    ] = None,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Classify images with a saved adapter; those that cannot be read are told and skipped."""
    from cache.extract import default_workers
    from fewshot.adapters.predict import run

    outcome = run(  # out is taken here: within a bar, rich sends what sys.stdout gets to stderr
        adapter,
        images,
        out=sys.stdout,
        say=say,
        stdin=sys.stdin.buffer,
        top=top,
        form=form,
        min_confidence=min_confidence,
        model=model,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers or default_workers(),
        max_pixels=max_pixels,
    )
    say(str(outcome))


def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter's file, as `fit --save` writes.")],
    to: Annotated[
        str, typer.Option(help="open_clip: a folder that it loads; onnx: pixels to probabilities.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder. [default: the adapter's name and the target]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the adapter's model is now. [default: as it was called then]"),
    ] = None,
) -> None:
    """Write an adapter for other programs, checked against it, with a model card."""
    from fewshot.adapters.export.exporting import export as write

    show(str(write(adapter, to, out, model=model)))
