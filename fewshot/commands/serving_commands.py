"""Commands that listen at a port of this machine: `serve`."""

from typing import Annotated

import typer

from fewshot.commands.options import (
    MAX_PIXELS,
    AdapterArgument,
    AdapterModelOption,
    DeviceOption,
    MaxPixelsOption,
    PrecisionOption,
)
from fewshot.commands.terminal import say


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
