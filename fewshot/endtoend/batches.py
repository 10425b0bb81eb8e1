"""Batches of a training: crops of images, live, or features from a store."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.clip import Learner
from fewshot.endtoend.photos import PhotoBatches, center_crops
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_steps import Batches
from fewshot.sampling import Rows


@dataclass(frozen=True, eq=False)
class TrainImages:
    """N train images of a dataset to learn from, and how to read them.

    Attributes:
        source: The dataset.
        paths: N paths, relative to its root.
        encoder: The untrained model.
        workers: Threads that decode.
        batch_size: Images per forward pass without gradients.
    """

    source: Source
    paths: list[str]
    encoder: Encoder
    workers: int
    batch_size: int

    def live(self, learner: Learner, plan: TrainingPlan, seed: int) -> Batches:
        """Pixels, or, where the image tower is left alone, the features it has of them."""
        photos = PhotoBatches(
            self.source, self.paths, self.encoder.preprocess,
            crop_scale=plan.crop_scale, flip=plan.flip, seed=seed, workers=self.workers,
        )  # fmt: skip
        if learner.images is not None:
            return photos
        return lambda rows, epoch: self.encoder.encode_images(photos(rows, epoch))

    def centers(self) -> Iterator[Tensor]:
        """Pixels (B, 3, H, W) of the center crops, in order."""
        return center_crops(
            self.source, self.paths, self.encoder.preprocess,
            batch_size=self.batch_size, workers=self.workers,
        )  # fmt: skip

    def center_features(self) -> Tensor:
        """(N, D) features that the untrained model has of the center crops."""
        return torch.cat([self.encoder.encode_images(batch) for batch in self.centers()]).clone()


def stored_batches(store: FeatureStore, rows: Rows, with_views: bool) -> Batches:
    """Features (B, D) from the store: in each epoch another view, or the center crop."""
    train = store.split("train")
    if with_views and train.n_views:
        views = torch.from_numpy(train.views(rows))
    else:
        views = torch.from_numpy(store.features("train", rows))[None]
    return lambda chosen, epoch: views[epoch % len(views)][chosen]
