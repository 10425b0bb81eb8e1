"""The few shots of a store under a protocol: which rows they are, and their features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from cache.errors import UserError
from cache.split import Split
from cache.store import FeatureStore
from fewshot.protocol import HALVES, Protocol
from fewshot.sampling import Rows, Sample, halves, restrict
from fewshot.support import SupportSet

if TYPE_CHECKING:
    from cache.datasets.source import Source  # with PIL


def base_and_new(of: "FeatureStore | Source", setting: str) -> tuple[range, range]:
    """The classes to learn from images, and those to know by name.

    Args:
        of: Their images, encoded or not.
        setting: The setting that asks for them.

    Raises:
        UserError: They are too few for the setting.
    """
    n_classes, labels = len(of.classnames), np.zeros(0, np.int64)
    if "train" in of.splits:
        if isinstance(of, FeatureStore):
            labels = of.labels("train")
        else:
            labels = np.array([item.label for item in of.splits["train"]], np.int64)
    base, new = halves(labels, n_classes)
    if len(new) < 2:
        raise UserError(
            f"{setting} needs four classes or more, two to tell apart in each half; "
            f"{of.dataset} has {n_classes}; leave {setting} out"
        )
    return base, new


def draw_sample(store: FeatureStore, protocol: Protocol, val_labels: Rows | None = None) -> Sample:
    """The rows that the protocol asks for, drawn of all classes that have train images.

    Args:
        store: The features.
        protocol: What is asked.
        val_labels: Class ids of the val split, where the protocol tunes on some of it.

    Raises:
        UserError: A class has too few images.
    """
    labels = store.labels("train")
    names = store.classnames
    if protocol.setting in HALVES:  # the last classes may have no image
        names = names[: int(labels.max(initial=0)) + 1]
    return protocol.draw(labels, names, val_labels=val_labels)


def unit_support(
    train: Split, sample: Sample, classes: Sequence[int], *, views: bool
) -> SupportSet:
    """The features of the few shots at unit norm.

    Args:
        train: The split that they were drawn from.
        sample: Their rows.
        classes: The ids of the classes to keep, in ascending order.
        views: Read their augmented views as well, where there are some.
    """
    kept, labels = restrict(train.labels[sample.train], classes)
    rows = sample.train[kept]
    return SupportSet(
        features=torch.from_numpy(train.features(rows)),
        labels=torch.from_numpy(labels),
        n_classes=len(classes),
        views=torch.from_numpy(train.views(rows)) if views and train.n_views else None,
    )
