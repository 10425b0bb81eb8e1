"""Labeled source and unlabeled target in; the accuracy on the target's test split out.

The classes' names say how the two are related: all shared (`closed`), only the source has others
(`partial`), only the target (`open`), or both (`universal`). Where the target has classes of its
own, their images are unknown, and right is to say so; the H-score is the harmonic mean of known and
unknown accuracy (Fu et al., ECCV 2020; You et al., CVPR 2019).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Unpack
from typing import Protocol as ProtocolClass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from cache.pair import same_weight
from cache.store import FeatureStore
from fewshot.abilities import AdaptsToDomain
from fewshot.cross_dataset import require_one_model
from fewshot.fitting import fit
from fewshot.method import Method, MethodInfo
from fewshot.metrics import harmonic_mean, per_class_accuracy
from fewshot.open_set import certainty
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.results.prediction_files import digest_of_images
from fewshot.run import setting_name
from fewshot.settling import settled
from fewshot.store_features import query
from fewshot.tested import image_digest, require_test_split, result_of

Relation = Literal["closed", "partial", "open", "universal"]
UNKNOWN = "unknown"


class Classes(ProtocolClass):
    """Whatever is of a dataset and its classes."""

    @property
    def dataset(self) -> str:
        """The dataset's name."""

    @property
    def classnames(self) -> Sequence[str]:
        """C names."""


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
    tested = time.perf_counter()
    judged = judge(
        logits.argmax(dim=1), certainty(logits.double()), protocol.threshold,
        source.classnames, target.classnames, test.labels, target.path,
    )  # fmt: skip
    run = replace(
        fitted.run,
        dataset=target.dataset,
        fitted_on=source.dataset,
        fingerprint=target.fingerprint,
        setting=setting_name(method, "domain-adaptation"),
    )
    return result_of(
        run,
        judged.predicted,
        judged.labels,
        judged.classnames,
        digest_of_images(target.dataset, test.labels, np.arange(len(test))),
        accuracies=judged.accuracies,
        overall=judged.overall,
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


def _train_images(store: FeatureStore, method: Method) -> Tensor:
    """(U, D) the train images that are encoded, labels or none."""
    train = store.split("train")
    return query(train, method, train.encoded)


@dataclass(frozen=True, eq=False)
class Judgment:
    """Predictions on a target's test images, beside the truth in the source's classes.

    Attributes:
        predicted: (M,) columns; one more than the source has classes is unknown.
        labels: (M,) likewise.
        classnames: Of the columns.
        accuracies: `known` and `unknown`, where the target has classes of its own.
        overall: Their harmonic mean; None for the share of images that are right.
    """

    predicted: Tensor
    labels: Tensor
    classnames: tuple[str, ...]
    accuracies: dict[str, float]
    overall: float | None


def judge(
    predicted: Tensor,
    certain: Tensor,
    threshold: float,
    ours: Sequence[str],
    theirs: Sequence[str],
    labels: NDArray[np.int64],
    where: object,
) -> Judgment:
    """Judge predictions on a target, in which images below the threshold are unknown.

    Args:
        predicted: (M,) classes of the source.
        certain: (M,) certainties.
        threshold: Counts where the target has classes that the source has not.
        ours: The source's class names.
        theirs: The target's.
        labels: (M,) classes of the target.
        where: Names the target in errors.

    Raises:
        UserError: All test images are of shared classes where some should not be, or none is.
    """
    ids = {name: k for k, name in enumerate(ours)}
    truth = torch.tensor([ids.get(name, len(ours)) for name in theirs])[torch.from_numpy(labels)]
    if set(theirs) <= set(ours):
        return Judgment(predicted, truth, tuple(ours), {}, None)
    predicted = predicted.masked_fill(certain < threshold, len(ours))
    shared = truth < len(ours)
    if shared.all() or not shared.any():
        kind = "unknown" if shared.all() else "shared"
        raise UserError(f"{where} has no test image of {kind} classes; add some")
    known = per_class_accuracy(predicted[shared], truth[shared])
    alone = float((predicted[~shared] == len(ours)).double().mean())
    found = {"known": known, "unknown": alone}
    return Judgment(predicted, truth, (*ours, UNKNOWN), found, harmonic_mean(known, alone))


def takes_target(method: MethodInfo) -> bool:
    """True if the method learns from the target's unlabeled images."""
    return isinstance(method, AdaptsToDomain) or method.unsupervised()


def relation(source: Classes, target: Classes) -> Relation:
    """The relation of two datasets' or stores' classes, by their names.

    Raises:
        UserError: They have no class in common, or a name is of two classes of one.
    """
    for store in (source, target):
        name, times = Counter(store.classnames).most_common(1)[0]
        if times > 1:
            raise UserError(f"{name} is the name of two classes of {store.dataset}; rename one")
    ours, theirs = set(source.classnames), set(target.classnames)
    if not ours & theirs:
        raise UserError(
            f"{source.dataset} and {target.dataset} have no class of the same name in common; "
            "name the classes alike"
        )
    if ours == theirs:
        return "closed"
    return "partial" if theirs < ours else "open" if ours < theirs else "universal"
