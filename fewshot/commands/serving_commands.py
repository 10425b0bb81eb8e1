"""Commands that listen at a port of this machine: `teach`, `serve`."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot.commands.options import (
    DEFAULT_MODEL,
    MAX_PIXELS,
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
from fewshot.commands.parsing import parse_names
from fewshot.commands.terminal import say


def teach(
    photos: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Photos, in any folders below it.")
    ],
    model: ModelOption = DEFAULT_MODEL,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B[,…]",
            help="Names of the classes, which the model may know already; others can be named "
            "on the page.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="File that keeps the labels. [default: NAME-labels.jsonl among the stores]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for labels.csv and adapter.safetensors. [default: runs/teach/NAME]"
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 for any that is free.")] = 0,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser of this machine.")
    ] = False,
    store: StoreOption = None,
    seed: Annotated[int, typer.Option(*SEED, help="Random seed for drawing photos.")] = 1,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    rehash: RehashOption = False,
) -> None:
    """Label photos on a page while a classifier learns from them.

    The page is on this machine alone. Every label is on the disk at once.
    """
    from fewshot.teaching.teach import teach as run

    run(
        photos, model=model, classes=parse_names(classes) or (), labels=labels, out=out,
        store=store, port=port, show=show, device=device, precision=precision, seed=seed,
        workers=workers, max_pixels=max_pixels, rehash=rehash, say=say,
    )  # fmt: skip


def serve(
    adapter: AdapterArgument,
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    model: AdapterModelOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Answer HTTP requests with a saved adapter's predictions.

    POST images to /predict; /openapi.json describes the answers.
    """
    from fewshot.serving.serve import serve as run

    run(
        adapter, host=host, port=port, model=model, device=device, precision=precision,
        max_pixels=max_pixels, say=say,
    )  # fmt: skip
