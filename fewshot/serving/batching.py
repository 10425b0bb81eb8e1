"""Images of several requests encoded together."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import torch
from torch import Tensor

BATCH = 64  # images in a forward pass, as in `fewshot predict`
WAIT = 0.005  # seconds that an image waits for company; a ViT-B/16 takes 30 times that on two cores


class Batcher:
    """A thread that encodes; `features` hands it images and waits for theirs.

    While a batch is encoded the next one gathers, so under load batches fill by themselves.

    Args:
        encode: (B, 3, H, W) pixels to (B, D) features.
        batch_size: Maximum number of images in a forward pass.
        wait: Seconds to wait for more images once there is one.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        batch_size: int = BATCH,
        wait: float = WAIT,
    ) -> None:
        self._encode, self._batch_size, self._wait = encode, batch_size, wait
        self._queue: queue.Queue[tuple[Tensor, Future[Tensor]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def features(self, pixels: Tensor) -> Tensor:
        """(B, D) features of (B, 3, H, W) pixels; raises whatever the encoder raises."""
        parts: list[Future[Tensor]] = []
        for part in torch.split(pixels, self._batch_size):
            parts.append(Future())
            self._queue.put((part, parts[-1]))
        return torch.cat([part.result() for part in parts])

    def close(self) -> None:
        """End the thread, once it has encoded what it was handed."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        kept: tuple[Tensor, Future[Tensor]] | None = None  # did not fit into the last batch
        while (first := kept or self._queue.get()) is not None:
            batch, kept = [first], None
            images, until = len(first[0]), time.monotonic() + self._wait
            while images < self._batch_size:
                try:
                    more = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if more is None:
                    self._queue.put(None)
                    break
                if images + len(more[0]) > self._batch_size:
                    kept = more
                    break
                batch.append(more)
                images += len(more[0])
            self._answer(batch)

    def _answer(self, batch: list[tuple[Tensor, Future[Tensor]]]) -> None:
        try:
            found = self._encode(torch.cat([pixels for pixels, _ in batch]))
        except Exception as error:  # for whoever waits; the thread has to go on
            for _, future in batch:
                future.set_exception(error)
            return
        parts = torch.split(found, [len(pixels) for pixels, _ in batch])
        for part, (_, future) in zip(parts, batch, strict=True):
            future.set_result(part)
