"""Store, method and protocol in; the accuracy on the test split out.

Few-shot, zero-shot, imbalanced and unsupervised results, and those of known classes among unknown
ones. Classes without images are in `new_classes`, several datasets in `transfer` and
`domain_adaptation`. The setting is written into the result, and results of different settings are
never averaged.
"""

import time
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from cache.store import FeatureStore
from fewshot.fitted import Fitted
from fewshot.fitting import fit
from fewshot.method import Method
from fewshot.metrics import accuracy, harmonic_mean
from fewshot.multi_label.label_evaluation import evaluate_labels, refuse_predictions
from fewshot.new_classes import base_to_new, generalized, named_alone, some_named_alone
from fewshot.open_set import (
    checked_known,
    classify_and_score,
    known_among,
    known_classes,
    separated,
)
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.settling import settled
from fewshot.store_features import query
from fewshot.tested import (
    Classified,
    by_class_size,
    classify_test,
    require_test_split,
    result_on,
)


def evaluate(
    store: FeatureStore | Path | str,
    method: Method | str,
    protocol: Protocol | None = None,
    *,
    save: Path | str | None = None,
    **asked: Unpack[Asked],
) -> Result:
    """Draw the few shots, tune and fit on them, and only then classify the test split.

    `evaluate(store, "gda", shots=4, seed=1)` and `evaluate(store, GDA(), Protocol(shots=4))` say
    what is asked by keywords, or by a `Protocol` that several calls share. With unequal classes the
    result has the accuracies over classes of many, medium and few images as well.

    With `known`, a number of classes or their names, the others' test images are unknown. The
    result has `known`, the accuracy on known images; `auroc`, of known against unknown by `score`;
    and `fpr95`, the share of unknown images that pass where 95 % of the known ones do. Its accuracy
    is the harmonic mean of the first two.

    With `shots="all"` a class without a train image is known by its text; see
    `new_classes.some_named_alone`.

    Where images may have several labels, the setting is `multi-label` and the accuracy is mAP; see
    `multi_label.label_evaluation`.

    Args:
        store: The features, or the file of them.
        method: A method, or its name, as in `fitting.fit`.
        protocol: What is asked; the default `Protocol()` without it.
        save: A folder to write the predictions into.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: What `fit` raises, or no test split.
    """
    store = FeatureStore.of(store)
    configured, protocol = settled(store, method, protocol, asked)
    if store.multi_label or protocol.setting == "multi-label":
        refuse_predictions(save)
        return evaluate_labels(store, method, protocol)
    if protocol.setting == "base-to-new":
        return base_to_new(store, method, protocol, save=save)
    if protocol.setting == "generalized":
        return generalized(store, method, protocol, save)
    if protocol.setting == "open-set":
        return _open_set(store, method, protocol, save)
    require_test_split(store)
    if protocol.shots == "all" and protocol.support_for(configured) and named_alone(store):
        return some_named_alone(store, method, protocol, save)
    return score(fit(store, method, protocol), save=save)


def score(fitted: Fitted, *, save: Path | str | None = None) -> Result:
    """The accuracy on the test split of what was fitted to a store's few shots.

    Args:
        fitted: As `fitting.fit` gave it, of all classes.
        save: A folder to write the predictions into.

    Raises:
        UserError: No test split.
    """
    test = require_test_split(fitted.store)
    tested = classify_test(fitted.classifier, fitted.method, query(test, fitted.method))
    labels = torch.from_numpy(test.labels)
    accuracies = {}
    if fitted.run.imbalance is not None and fitted.support is not None:
        accuracies = by_class_size(tested.predicted, labels, fitted.support.counts)
    return result_on(
        fitted, fitted.run, fitted.store, test, tested, accuracies=accuracies, save=save
    )


def _open_set(
    store: FeatureStore, method: Method | str, protocol: Protocol, save: Path | str | None
) -> Result:
    test = require_test_split(store)
    assert protocol.known is not None
    known = np.array(known_classes(store.classnames, checked_known(protocol.known)))
    ours = known_among(test.labels, known, store.path)
    fitted = fit(store, method, protocol)
    store, test = fitted.store, fitted.store.split("test")
    features = query(test, fitted.method)
    start = time.perf_counter()
    block = len(features) if fitted.method.transductive else 4096
    predicted, scores = classify_and_score(
        fitted.classifier, features, protocol.score, store.logit_scale, block
    )
    seconds = time.perf_counter() - start
    rows = np.flatnonzero(ours)
    named = torch.from_numpy(known)[predicted[rows]]
    right = accuracy(named, torch.from_numpy(test.labels[rows]))
    accuracies = separated(right, scores, ours)
    return result_on(
        fitted,
        fitted.run,
        store,
        test,
        Classified(named, seconds),
        rows=rows,
        accuracies=accuracies,
        overall=harmonic_mean(right, accuracies["auroc"]),
        save=save,
    )
