"""A method fitted without labels: to the text alone, or to images whose labels it must not see."""

import time
from collections.abc import Sequence

from torch import Tensor

from cache.store import FeatureStore
from fewshot.fitted import Fitted
from fewshot.method import Method
from fewshot.protocol import Protocol
from fewshot.sampling import restrict
from fewshot.settling import run_on
from fewshot.store_features import query
from fewshot.text import Text


def fit_unlabeled(
    store: FeatureStore,
    method: Method,
    protocol: Protocol,
    text: Text | None,
    classes: Sequence[int],
    images: Tensor | None,
) -> Fitted:
    """Fit to the text alone, or to all train images of the classes without their labels.

    From an open set the images of unknown classes are among them, for no label says which they are.
    """
    given = images if method.unsupervised() else None
    if method.unsupervised() and images is None:
        train = store.split("train")
        there = classes if protocol.known is None else range(store.n_classes)
        rows = train.encoded
        if not train.unlabeled:
            rows = rows[restrict(train.labels[rows], there)[0]]
        given = query(train, method, rows)
    start = time.perf_counter()
    if method.reads_pooled:
        tower = store.image_tower
        assert tower is not None  # the pooled images were there
        classifier = method.fit_pooled(given, tower, text)
    else:
        classifier = method.fit_unlabeled(given, text)
    return Fitted(
        run=run_on(store, method, protocol, 0, 0, 0),
        store=store,
        method=method,
        classifier=classifier,
        support=None,
        text=text,
        n_images=0 if given is None else len(given),
        n_validation=0,
        seconds=time.perf_counter() - start,
    )
