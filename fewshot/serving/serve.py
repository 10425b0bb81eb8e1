"""Serve an adapter's predictions over HTTP."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from cache.errors import count
from cache.images.decoding_memory import MAX_PIXELS
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.opened_adapter import open_adapter
from fewshot.adapters.predictor import Predictor
from fewshot.serving.prediction_service import QUEUE, PredictionService
from fewshot.serving.web_server import WebServer, until_interrupted


def serve(
    adapter: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Answer requests until the process is interrupted.

    Args:
        adapter: Its file.
        host: The address to listen at.
        port: The port; 0 for any that is free.
        model: As in `open_adapter`.
        device: As in `open_adapter`.
        precision: As in `open_adapter`.
        max_pixels: Width times height of the largest image that is decoded.
        say: Called with where it listens, and in the end with how many images it answered.

    Raises:
        UserError: The adapter or its model cannot be had, or the port is taken.
    """
    learned = load_adapter(adapter)
    with WebServer(host, port) as server:
        predictor = open_adapter(learned, model=model, device=device, precision=precision)
        with answering(server, predictor, max_pixels=max_pixels) as service:
            say(f"{learned.summary()}\nPOST images to {server.address}/predict; Ctrl-C ends")
            until_interrupted()
    say(f"stopped; {count(service.answered, 'image')} answered")


@contextlib.contextmanager
def answering(
    server: WebServer,
    predictor: Predictor,
    *,
    max_pixels: int = MAX_PIXELS,
    queue: int = QUEUE,
) -> Iterator[PredictionService]:
    """Answer requests, in threads, for as long as the block runs.

    Args:
        server: Where they come in.
        predictor: What classifies.
        max_pixels: Width times height of the largest image that is decoded.
        queue: Maximum number of images being answered at a time.
    """
    service = PredictionService(predictor, max_pixels=max_pixels, queue=queue)
    try:
        with server.serving(service):
            yield service
    finally:
        service.close()
