"""Labeled source and unlabeled target in; the accuracy on the target's test split out.

The classes' names say how the two are related: all shared (`closed`), only the source has others
(`partial`), only the target (`open`), or both (`universal`). Where the target has classes of its
own, their images are unknown, and right is to say so; the H-score is the harmonic mean of known and
unknown accuracy (Fu et al., ECCV 2020; You et al., CVPR 2019).
"""

import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
import torch

from cache.errors import UserError
from cache.pair import same_weight
from cache.store import FeatureStore
from fewshot.cross_dataset import require_one_model
from fewshot.fitting import fit, query, settled
from fewshot.method import AdaptsToDomain, Method, MethodInfo
from fewshot.metrics import harmonic_mean, per_class_accuracy
from fewshot.open_set import certainty
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.results.prediction_files import digest_of_images
from fewshot.run import setting_name
from fewshot.tested import image_digest, require_test_split, result_of

Relation = Literal["closed", "partial", "open", "universal"]
UNKNOWN = "unknown"


def adapt(
    source: FeatureStore | Path | str,
    target: FeatureStore | Path | str,
    method: Method | str,
    protocol: Protocol | None = None,
    *,
    save: Path | str | None = None,
    **asked: Unpack[Asked],
) -> Result:
    """Learn from the source's labels and the target's train images, and test on the target.

    A method that adapts, such as two-stage, is fitted to the source and then given the target's
    images. One that learns from unlabeled images gets these and the source's class text. Any other
    learns from the source alone, as a baseline. An image is unknown where the classifier's
    certainty, 1 - H(p) / log C, is below the protocol's threshold; no label of the target has a
    say in anything. The result's `accuracies` are `known`, the mean accuracy of the shared classes,
    and `unknown`, where the target has classes of its own; its accuracy is their harmonic mean,
    else top-1.

    Args:
        source: The store that labels are taken from.
        target: A store of the same model with a test split.
        method: A method, or its name, as in `fitting.fit`.
        protocol: What is asked; the default `Protocol()` without it. The setting is
            domain-adaptation.
        save: A folder to write the predictions into.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: What `fit` raises; stores of different models or without a common class; or a
            target without test images, or without train images for a method that adapts.
    """
    source, target = FeatureStore.of(source), FeatureStore.of(target)
    configured, protocol = settled(
        source, method, protocol, {**asked, "setting": "domain-adaptation"}
    )
    require_one_model(source, target)
    private = relation(source, target) in ("open", "universal")
    require_test_split(target)
    target = same_weight(target, source)
    given = _train_images(target, configured) if takes_target(configured) else None
    fitted = fit(source, method, protocol, images=given)
    method, target = fitted.method, same_weight(target, fitted.store)
    test = target.split("test")
    images = None if given is None else _train_images(target, method)
    start = time.perf_counter()
    classifier = fitted.classifier
    if isinstance(fitted.method, AdaptsToDomain) and images is not None:
        classifier = fitted.method.adapt(classifier, images, unknown=private)
    moved = time.perf_counter()
    with torch.no_grad():
        features = query(test, method)
        block = max(1, len(features)) if method.transductive else 4096
        logits = torch.cat([classifier.logits(part) for part in torch.split(features, block)])
    predicted = logits.argmax(dim=1)
    if private:
        predicted[certainty(logits.double()) < protocol.threshold] = source.n_classes
    tested = time.perf_counter()
    ids = {name: k for k, name in enumerate(source.classnames)}
    labels = torch.tensor([ids.get(name, source.n_classes) for name in target.classnames])
    labels = labels[torch.from_numpy(test.labels)]
    accuracies = {}
    if private:
        shared = labels < source.n_classes
        if shared.all() or not shared.any():
            kind = "unknown" if shared.all() else "shared"
            raise UserError(f"{target.path} has no test image of {kind} classes; add some")
        known = per_class_accuracy(predicted[shared], labels[shared])
        alone = float((predicted[~shared] == source.n_classes).double().mean())
        accuracies = {"known": known, "unknown": alone}
    run = replace(
        fitted.run,
        dataset=target.dataset,
        fitted_on=source.dataset,
        fingerprint=target.fingerprint,
        setting=setting_name(method, "domain-adaptation"),
    )
    return result_of(
        run,
        predicted,
        labels,
        (*source.classnames, UNKNOWN) if private else source.classnames,
        digest_of_images(target.dataset, test.labels, np.arange(len(test))),
        accuracies=accuracies,
        overall=harmonic_mean(*accuracies.values()) if private else None,
        save=save,
        hyperparameters=asdict(fitted.method),
        measures={**classifier.stats, **fitted.measures},
        text_recipe=None if fitted.text is None else fitted.method.text_recipe,
        n_support=fitted.n_images + (len(images) if images is not None and fitted.support else 0),
        n_validation=fitted.n_validation,
        fit_seconds=fitted.seconds + moved - start,
        predict_seconds=tested - moved,
        image_digest=image_digest(target),
    )


def _train_images(store: FeatureStore, method: Method) -> torch.Tensor:
    """(U, D) the train images that are encoded, labels or none."""
    train = store.split("train")
    return query(train, method, train.encoded)


def takes_target(method: MethodInfo) -> bool:
    """True if the method learns from the target's unlabeled images."""
    return isinstance(method, AdaptsToDomain) or method.unsupervised()


def relation(source: FeatureStore, target: FeatureStore) -> Relation:
    """The relation of the stores' classes, by their names.

    Raises:
        UserError: They have no class in common, or a name is of two classes of one.
    """
    for store in (source, target):
        name, times = Counter(store.classnames).most_common(1)[0]
        if times > 1:
            raise UserError(f"{name} is the name of two classes of {store.path}; rename one")
    ours, theirs = set(source.classnames), set(target.classnames)
    if not ours & theirs:
        raise UserError(
            f"{source.path} and {target.path} have no class of the same name in common; "
            "name the classes alike"
        )
    if ours == theirs:
        return "closed"
    return "partial" if theirs < ours else "open" if ours < theirs else "universal"
