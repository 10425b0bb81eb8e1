"""A trained model on the test split: what it takes each image for, and how sure it is."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.store import FeatureStore
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.photos import center_crops
from fewshot.sampling import Rows


@torch.no_grad()
def classify(
    learner: Learner,
    clip: Clip,
    source: Source,
    store: FeatureStore | None,
    *,
    batch_size: int,
    workers: int,
    advance: Callable[[int], None],
    sureness: Callable[[Tensor], Tensor] | None = None,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    """(M,) predicted columns of the logits, and (M,) what `sureness` says of each image.

    Args:
        learner: What was trained.
        clip: The model that it is part of.
        source: The dataset to test on.
        store: Its features, for a learner that leaves the image tower alone.
        batch_size: Images per forward pass.
        workers: Threads that decode.
        advance: Called with the number of images just classified.
        sureness: (B, C) logits to (B,) numbers; without it these are 0.
        rows: (M,) rows of the test split; all without it.
    """
    predicted, sure = [], []
    for logits in _logits(learner, clip, source, store, batch_size, workers, advance, rows):
        predicted.append(logits.argmax(dim=1))
        sure.append(torch.zeros(len(logits)) if sureness is None else sureness(logits))
    return torch.cat(predicted), torch.cat(sure)


def _logits(
    learner: Learner,
    clip: Clip,
    source: Source,
    store: FeatureStore | None,
    batch_size: int,
    workers: int,
    advance: Callable[[int], None],
    rows: Rows | None,
) -> Iterator[Tensor]:
    """(B, C) logits on the CPU, batch by batch."""
    with clip.autocast():
        fixed = learner.frozen()
    if store is not None:
        features = torch.from_numpy(store.features("test", rows))
        # A learner with a score of its own may run the text tower for every image.
        for part in torch.split(features, 4096 if learner.score is None else batch_size):
            with clip.autocast():
                yield fixed.logits(part.to(clip.device)).cpu()
            advance(len(part))
        return
    encode = learner.images or clip.model.encode_image
    items = source.splits["test"]
    paths = [items[row].path for row in (range(len(items)) if rows is None else rows)]
    for pixels in center_crops(
        source, paths, clip.preprocess, batch_size=batch_size, workers=workers, advance=advance
    ):
        with clip.autocast():
            yield fixed.logits(encode(pixels.to(clip.device))).cpu()
