"""A trained model on the test split: what it takes each image for, and how sure it is."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.errors import UserError
from cache.extraction.digests import of_images
from cache.store import FeatureStore
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.photos import center_crops
from fewshot.sampling import Rows
from fewshot.tested import image_digest


@dataclass(frozen=True, eq=False)
class Queries:
    """The M images of a test split, and how to read them.

    Attributes:
        source: The dataset to test on.
        store: Its features, for a learner that leaves the image tower alone.
        batch_size: Images per forward pass.
        workers: Threads that decode.
        advance: Called with the number of images just classified.
    """

    source: Source
    store: FeatureStore | None
    batch_size: int
    workers: int
    advance: Callable[[int], None]

    @property
    def paths(self) -> list[str]:
        """M paths, relative to the dataset's root."""
        return [item.path for item in self.source.splits["test"]]

    @property
    def image_digest(self) -> str | None:
        """16 hex digits that stand for the images' bytes; None where they are unknown."""
        if self.store is not None:
            return image_digest(self.store)
        with contextlib.suppress(OSError):
            return of_images(self.source, "test")[:16]
        return None

    @torch.no_grad()
    def classify(
        self,
        learner: Learner,
        clip: Clip,
        *,
        sureness: Callable[[Tensor], Tensor] | None = None,
        rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(M,) predicted columns of the logits, and (M,) what `sureness` says of each image.

        Args:
            learner: What was trained.
            clip: The model that it is part of.
            sureness: (B, C) logits to (B,) numbers; without it these are 0.
            rows: Those rows of the test split that are classified; all without it.

        Raises:
            UserError: The logits are not finite.
        """
        predicted, sure = [], []
        for logits in self._logits(learner, clip, rows):
            if not torch.isfinite(logits).all():
                raise UserError(
                    "the trained model's logits are not finite, so its last steps diverged; "
                    f"{clip.steadier}"
                )
            predicted.append(logits.argmax(dim=1))
            sure.append(torch.zeros(len(logits)) if sureness is None else sureness(logits))
        return torch.cat(predicted), torch.cat(sure)

    def _logits(self, learner: Learner, clip: Clip, rows: Rows | None) -> Iterator[Tensor]:
        """(B, C) logits on the CPU, batch by batch."""
        self.advance(0)  # so that a bar's clock starts before the first batch
        with clip.autocast():
            fixed = learner.frozen()
        if self.store is not None:
            features = torch.from_numpy(self.store.features("test", rows))
            # A learner with a score of its own may run the text tower for every image.
            for part in torch.split(features, 4096 if learner.score is None else self.batch_size):
                with clip.autocast():
                    yield fixed.logits(part.to(clip.device)).cpu()
                self.advance(len(part))
            return
        encode = learner.images or clip.model.encode_image
        items = self.source.splits["test"]
        paths = [items[row].path for row in (range(len(items)) if rows is None else rows)]
        for pixels in center_crops(
            self.source, paths, clip.preprocess,
            batch_size=self.batch_size, workers=self.workers, advance=self.advance,
        ):  # fmt: skip
            with clip.autocast():
                yield fixed.logits(encode(pixels.to(clip.device))).cpu()
