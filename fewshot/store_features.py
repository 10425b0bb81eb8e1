"""A store's features and texts in the form that a method needs."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.split import Split
from cache.store import FeatureStore
from fewshot.method import Method
from fewshot.sampling import Rows
from fewshot.support import SupportSet
from fewshot.text import Text


def class_text(
    store: FeatureStore, method: Method, prompt_set: str | None, classes: Sequence[int]
) -> Text | None:
    """The classes' text by the method's recipe; None where the store has none."""
    if not store.text_sets and prompt_set is None:
        return None
    stored = store.class_text(method.text_recipe, prompt_set)
    text = Text(
        torch.from_numpy(stored.features),
        torch.from_numpy(stored.prompts),
        torch.from_numpy(stored.labels),
        None if stored.pooled is None else torch.from_numpy(stored.pooled),
        None if stored.projection is None else torch.from_numpy(stored.projection),
    )
    return text.classes(torch.tensor(classes))


def query(split: Split, method: Method, rows: Rows | None = None) -> Tensor:
    """(M, D) features to classify, in the form that the method needs; or pooled images (M, w).

    Raises:
        UserError: Pooled images are needed and the store has none.
    """
    if method.reads_pooled:
        return torch.from_numpy(split.pooled(rows))
    return torch.from_numpy(split.features(rows, unit=method.unit_norm))


def support_set(
    split: Split,
    method: Method,
    rows: Rows | None,
    labels: NDArray[np.int64],
    n_classes: int,
    *,
    views: bool = False,
) -> SupportSet:
    """The support set of rows of a split, in the form that the method needs.

    Args:
        split: Of a store.
        method: What learns from it.
        rows: (N,) or None for all.
        labels: (N,) their classes among the C.
        n_classes: C.
        views: With the rows' views, where the split has some.
    """
    features, crops = query(split, method, rows), None
    if views and rows is not None and split.n_views:
        if method.reads_pooled:
            crops = split.pooled_views(rows)
        else:
            crops = split.views(rows, unit=method.unit_norm)
    return SupportSet(
        features=features,
        labels=torch.from_numpy(labels),
        n_classes=n_classes,
        views=None if crops is None else torch.from_numpy(crops),
        unit_norm=method.unit_norm and not method.reads_pooled,
        tower=split.image_tower if method.reads_pooled else None,
    )
