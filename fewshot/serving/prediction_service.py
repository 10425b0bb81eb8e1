"""An adapter that answers over HTTP: `POST /predict`, and what it is at `GET /health`."""

import contextlib
import threading
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cache.errors import UserError, none_can, unknown
from cache.images import decode
from cache.images.decoding_memory import MAX_PIXELS
from cache.images.read_ahead import ERRORS, reason
from fewshot.adapters.answers import Answers
from fewshot.adapters.image_results import PredictionForm, distinct
from fewshot.adapters.output import plain
from fewshot.adapters.predictor import Predictor
from fewshot.serving.batching import Batcher
from fewshot.serving.messages import Reply, Request, RequestError, as_json
from fewshot.serving.openapi import PARAMETERS, description
from fewshot.serving.uploads import Upload, uploads

QUEUE = 256  # images that are being answered; their pixels take 150 MB at 224 x 224
PLACES = {"/predict": "POST", "/health": "GET", "/openapi.json": "GET"}


class PredictionService:
    """Answers requests, of many threads at once.

    Args:
        predictor: What classifies.
        max_pixels: Width times height of the largest image that is decoded.
        queue: Maximum number of images being answered at a time; a request beyond it is refused.

    Attributes:
        answered: The number of images answered so far.
    """

    def __init__(
        self, predictor: Predictor, *, max_pixels: int = MAX_PIXELS, queue: int = QUEUE
    ) -> None:
        self._predictor, self._max_pixels, self._queue = predictor, max_pixels, queue
        self._exif = bool(predictor.adapter.preprocessing.get("exif", True))
        self._batcher = Batcher(predictor.features)
        self._lock = threading.Lock()
        self._inside = 0
        self.answered = 0

    def __call__(self, request: Request) -> Reply:
        """The answer to a request.

        Raises:
            RequestError: No such address, or a request that cannot be answered.
        """
        method = PLACES.get(request.path)
        if method is None:
            places = ", ".join(f"{method} {path}" for path, method in PLACES.items())
            raise RequestError(404, f"nothing is at {request.path[:80]!r}; there are {places}")
        if method != request.method:
            raise RequestError(405, f"{request.path} takes {method} alone", Allow=method)
        if request.path == "/predict":
            return self._predict(request)
        adapter = self._predictor.adapter
        return as_json(description(adapter) if request.path == "/openapi.json" else self._health())

    def close(self) -> None:
        """End the thread that encodes."""
        self._batcher.close()

    def _predict(self, request: Request) -> Reply:
        try:
            answers = Answers(self._predictor, asked(request.query))
        except UserError as error:
            raise RequestError(400, str(error)) from None
        images = uploads(request)
        with self._room_for(len(images)):
            read = [(image.name, self._pixels(image)) for image in images]
            pixels = [x for _, x in read if isinstance(x, Tensor)]
            if not pixels:
                raise RequestError(422, f"{none_can(len(images), 'image')} be read: {read[0][1]}")
            features = iter(self._batcher.features(torch.stack(pixels)))
            found = answers.each(
                [(n, x if isinstance(x, str) else next(features)) for n, x in read]
            )
            predictions = [plain(one) for one in found]
        with self._lock:
            self.answered += len(images)
        return as_json({"predictions": predictions})

    def _pixels(self, image: Upload) -> Tensor | str:
        """(3, H, W) pixels, or why the image cannot be read."""
        try:
            with decode.opened(image.content, exif=self._exif, max_pixels=self._max_pixels) as rgb:
                return self._predictor.preprocess.center(rgb)
        except ERRORS as error:
            return reason(error)

    @contextlib.contextmanager
    def _room_for(self, images: int) -> Iterator[None]:
        """Count so many images as being answered.

        Raises:
            RequestError: That would be more than the maximum.
        """
        with self._lock:
            if self._inside + images > self._queue:
                raise RequestError(
                    503, f"{self._inside} images are being answered; try again", Retry_After="1"
                )
            self._inside += images
        try:
            yield
        finally:
            with self._lock:
                self._inside -= images

    def _health(self) -> dict[str, object]:
        adapter = self._predictor.adapter
        return {
            "status": "ok",
            "method": adapter.method,
            "model": adapter.model_name,
            "classes": distinct(adapter.classnames),
            "unknown": adapter.open_set is not None,
            "answered": self.answered,
            "waiting": self._inside,
        }


def asked(query: Mapping[str, str]) -> PredictionForm:
    """The form of the predictions that the query of an address asks for.

    Raises:
        UserError: A parameter that there is not, or a value that it cannot have.
    """
    values = {}
    for name, text in query.items():
        if name not in PARAMETERS:
            raise unknown("parameter", name, PARAMETERS)
        parse, kind, _ = PARAMETERS[name]
        try:
            values[name] = parse(text)
        except (ValueError, KeyError):
            raise UserError(f"{name} must be of type {kind}; got {text[:80]!r}") from None
    return PredictionForm(**values)
