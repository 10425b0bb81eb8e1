"""Batches of a training: crops of images, live, or features from a store."""

import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.clip import Learner, TrainingPlan
from fewshot.endtoend.photos import PhotoBatches, center_crops
from fewshot.endtoend.steps import Batches
from fewshot.sampling import Rows


def stored_batches(store: FeatureStore, rows: Rows, with_views: bool) -> Batches:
    """Features (B, D) from the store: in each epoch another view, or the center crop."""
    train = store.split("train")
    if with_views and train.n_views:
        views = torch.from_numpy(train.views(rows))
    else:
        views = torch.from_numpy(store.features("train", rows))[None]
    return lambda chosen, epoch: views[epoch % len(views)][chosen]


def center_features(
    encoder: Encoder,
    source: Source,
    paths: list[str],
    store: FeatureStore | None,
    batch_size: int,
    workers: int,
) -> Tensor:
    """(U, D) features that the untrained model has of the train images' center crops."""
    if store is not None:
        return torch.from_numpy(store.features("train"))
    pixels = center_crops(source, paths, encoder.preprocess, batch_size=batch_size, workers=workers)
    return torch.cat([encoder.encode_images(batch) for batch in pixels]).clone()


def live_batches(
    learner: Learner,
    encoder: Encoder,
    source: Source,
    paths: list[str],
    plan: TrainingPlan,
    seed: int,
    workers: int,
) -> Batches:
    """Pixels, or, where the image tower is left alone, the features it has of them."""
    photos = PhotoBatches(
        source, paths, encoder.preprocess,
        crop_scale=plan.crop_scale, flip=plan.flip, seed=seed, workers=workers,
    )  # fmt: skip
    if learner.images is not None:
        return photos
    return lambda rows, epoch: encoder.encode_images(photos(rows, epoch))
