"""The parts of a store that a generator learns from: images, text or attributes."""

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.support import SupportSet
from fewshot.synthesis.generators import Extended, extended, generator_of
from fewshot.synthesis.tf_vaegan import TfVaegan


def extended_by(
    words: str, store: FeatureStore, support: SupportSet, *, prompt_set: str | None, seed: int
) -> Extended:
    """The base classes' images, and synthesized features of the store's other classes.

    Args:
        words: The generator, as in `generators.generator_of`.
        store: Has the text or the attributes of all classes.
        support: Images of the base classes.
        prompt_set: The set of prompts to make class texts of; None for the dataset's own.
        seed: Random seed for training and drawing.

    Raises:
        UserError: What `generator_of` raises, no text, or a training that diverged.
    """
    generator = generator_of(words)
    if lacks_text(store, words):
        raise UserError(
            f"{store.path} has no text, and {words} makes features of class texts; "
            "extract or import it with text"
        )
    unlabeled, attributes = None, None
    if isinstance(generator, TfVaegan):
        unlabeled = unlabeled_images(store, range(support.n_classes, store.n_classes))
        attributes = store.attributes
    if attributes is None:
        attributes = store.text("unit-mean", prompt_set)
    return extended(generator, support, torch.from_numpy(attributes), seed, unlabeled)


def lacks_text(store: FeatureStore, words: str) -> bool:
    """True if the store has nothing that the generator could make features of."""
    by_attributes = isinstance(generator_of(words), TfVaegan) and store.attributes is not None
    return not (store.text_sets or by_attributes)


def unlabeled_images(store: FeatureStore, classes: range) -> Tensor:
    """(U, D) train images of these classes at unit norm, which is all that their labels are for."""
    train = store.split("train")
    rows = train.encoded[np.isin(train.labels[train.encoded], classes)]
    return torch.from_numpy(train.features(rows))
