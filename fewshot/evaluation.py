"""Store, method, shots and seed in; the accuracy on the test split out, by one of the protocols.

    evaluate       learn and test on one dataset: few-shot, zero-shot, imbalanced, unsupervised
    base_to_new    learn half of the classes, test both halves, each among its own
    transfer       learn one dataset, test another

The setting is written into the result, and results of different settings are never averaged.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.classifier import Classifier, classify
from fewshot.fitting import Fitted, class_text, fit, query
from fewshot.method import Method, MethodInfo, SupportsNewClasses
from fewshot.metrics import accuracy, harmonic_mean, per_class_accuracy
from fewshot.results.log import Result, program_version
from fewshot.results.predictions import Predictions, digest_of_images, file_name, write_predictions
from fewshot.sampling import Sample, base_new, draw_imbalanced, restrict

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Images of a class in the train split by which long-tailed recognition groups its test accuracy.
GROUPS = {"many": range(101, 2**62), "medium": range(20, 101), "few": range(20)}


def evaluate(
    store: FeatureStore,
    method: Method,
    *,
    shots: int = 0,
    seed: int = 1,
    tune: str | None = None,
    fixed: Collection[str] = (),
    prompt_set: str | None = None,
    sample: Sample | None = None,
    views: bool = True,
    imbalance: str | None = None,
    save: Path | None = None,
) -> Result:
    """Draw the few shots, tune and fit on them, and only then classify the test split.

    Args:
        store: The features.
        method: What to fit; this and the next six as in `fitting.fit`.
        shots: K, images per class.
        seed: What draws them.
        tune: The tuning protocol.
        fixed: Hyper-parameters that are not tuned.
        prompt_set: Which prompts make the text features.
        sample: Few shots to use instead of drawing some.
        views: Learn from augmented views where there are some.
        imbalance: How unequal the classes are to be, as in `sampling.draw_imbalanced`; the result
            then tells the accuracy over classes of many, medium and few images as well.
        save: A folder to write the predictions into.

    Raises:
        UserError: What `fit` raises, no test split, or a profile that cannot be drawn.
    """
    store.labels("test")  # that there is a test split shows before anything is fitted
    if imbalance is not None:
        if not method.needs_support(shots) and not (method.unsupervised() and shots):
            raise UserError(f"{method.name} learns from no labels, which imbalance is about")
        sample = draw_imbalanced(
            store.labels("train"), store.classnames, profile=imbalance, shots=shots, seed=seed
        )
    fitted = fit(
        store, method, shots=shots, seed=seed, tune=tune, fixed=fixed,
        prompt_set=prompt_set, sample=sample, views=views,
    )  # fmt: skip
    return score(fitted, store, fixed=fixed, prompt_set=prompt_set, imbalance=imbalance, save=save)


def score(
    fitted: Fitted,
    store: FeatureStore,
    *,
    fixed: Collection[str] = (),
    prompt_set: str | None = None,
    imbalance: str | None = None,
    save: Path | None = None,
) -> Result:
    """The accuracy on the test split of what was fitted to the store's few shots.

    Args:
        fitted: As `fitting.fit` gave it, of all classes.
        store: The features it was fitted to.
        fixed: Hyper-parameters that were not tuned.
        prompt_set: Which prompts made the text features.
        imbalance: How unequal the classes were made.
        save: A folder to write the predictions into.

    Raises:
        UserError: No test split.
    """
    test_labels = torch.from_numpy(store.labels("test"))
    tested = _test(fitted.classifier, fitted.method, query(store, fitted.method, "test"))
    accuracies = {}
    if imbalance is not None and fitted.support is not None:
        counts = fitted.support.counts[test_labels]
        for group, sizes in GROUPS.items():
            rows = (counts >= sizes.start) & (counts < sizes.stop)
            if rows.any():
                accuracies[group] = accuracy(tested.predicted[rows], test_labels[rows])
    return _result(
        fitted,
        store,
        setting=_setting(fitted, "imbalanced" if imbalance else None),
        predicted=tested.predicted,
        labels=test_labels,
        rows=np.arange(len(test_labels)),
        seconds=tested.seconds,
        accuracies=accuracies,
        prompt_set=prompt_set,
        fixed=fixed,
        imbalance=imbalance,
        save=save,
    )


def base_to_new(
    store: FeatureStore,
    method: Method,
    *,
    shots: int,
    seed: int = 1,
    tune: str | None = None,
    fixed: Collection[str] = (),
    prompt_set: str | None = None,
    views: bool = True,
    save: Path | None = None,
) -> Result:
    """Learn the base classes, then test these among themselves and the new classes likewise.

    The base classes are the first half; the few shots of all classes are drawn first and then
    cut down to them, as CoCoOp does (https://arxiv.org/abs/2203.05557). The result's accuracy is
    the harmonic mean; `accuracies` has `base` and `new`.

    Args:
        store: The features.
        method: What to fit; all else as in `evaluate`.
        shots: K, images per class.
        seed: What draws them.
        tune: The tuning protocol; validation images are of base classes alone.
        fixed: Hyper-parameters that are not tuned.
        prompt_set: Which prompts make the text features.
        views: Learn from augmented views where there are some.
        save: A folder to write the predictions into.

    Raises:
        UserError: As `evaluate`, and for a method that cannot classify classes without images.
    """
    base, new = base_new(store.n_classes)
    _require_new_classes(method, "base-to-new")
    fitted = fit(
        store, method, shots=shots, seed=seed, tune=tune, fixed=fixed,
        prompt_set=prompt_set, views=views, classes=base,
    )  # fmt: skip
    classifiers = fitted.classifier, _unseen(fitted, store, prompt_set, new)
    predicted, labels, rows, accuracies = [], [], [], {}
    seconds = 0.0
    for name, classes, classifier in zip(("base", "new"), (base, new), classifiers, strict=True):
        here, truth = restrict(store.labels("test"), classes)
        tested = _test(classifier, method, query(store, method, "test", here))
        accuracies[name] = accuracy(tested.predicted, torch.from_numpy(truth))
        seconds += tested.seconds
        predicted.append(tested.predicted + classes.start)
        labels.append(torch.from_numpy(truth) + classes.start)
        rows.append(here)
    return _result(
        fitted,
        store,
        setting=_setting(fitted, "base-to-new"),
        predicted=torch.cat(predicted),
        labels=torch.cat(labels),
        rows=np.concatenate(rows),
        seconds=seconds,
        accuracies=accuracies,
        overall=harmonic_mean(accuracies["base"], accuracies["new"]),
        prompt_set=prompt_set,
        fixed=fixed,
        save=save,
    )


def transfer(
    source: FeatureStore,
    targets: Collection[FeatureStore],
    method: Method,
    *,
    shots: int = 0,
    seed: int = 1,
    tune: str | None = None,
    fixed: Collection[str] = (),
    prompt_set: str | None = None,
    views: bool = True,
    save: Path | None = None,
) -> list[Result]:
    """Fit on one dataset, then test on others; a result for each.

    Where a target's classes are among the source's, as those of ImageNet's variants are, the
    logits of these are looked at and the setting is domain generalization. Where they are not, the
    method has to classify classes of which it has text alone, and the setting is cross-dataset.

    Args:
        source: Where the few shots are drawn.
        targets: Stores of the same model with a test split each.
        method: What to fit; all else as in `evaluate`.
        shots: K, images per class.
        seed: What draws them.
        tune: The tuning protocol, on the source's images.
        fixed: Hyper-parameters that are not tuned.
        prompt_set: Which prompts make the text features, of source and targets.
        views: Learn from augmented views where there are some.
        save: A folder to write the predictions into.

    Raises:
        UserError: As `evaluate`; stores of different models; or, across datasets, a method that
            cannot classify classes without images.
    """
    columns = {}
    for target in targets:
        if target.model != source.model:
            raise UserError(
                f"{target.path} holds features of {target.model} and {source.path} of "
                f"{source.model}; extract both with one model"
            )
        columns[target.dataset] = shared_classes(source, target)
        if columns[target.dataset] is None:
            _require_new_classes(method, "cross-dataset")
    fitted = fit(
        source, method, shots=shots, seed=seed, tune=tune, fixed=fixed,
        prompt_set=prompt_set, views=views,
    )  # fmt: skip
    results = []
    for target in targets:
        chosen = columns[target.dataset]
        if chosen is None:
            classifier = _unseen(fitted, target, prompt_set, range(target.n_classes))
        else:
            classifier = _Columns(fitted.classifier, chosen)
        tested = _test(classifier, method, query(target, method, "test"))
        labels = torch.from_numpy(target.labels("test"))
        results.append(
            _result(
                fitted,
                target,
                setting=_setting(
                    fitted, "cross-dataset" if chosen is None else "domain-generalization"
                ),
                predicted=tested.predicted,
                labels=labels,
                rows=np.arange(len(labels)),
                seconds=tested.seconds,
                prompt_set=prompt_set,
                fixed=fixed,
                fitted_on=source.dataset,
                save=save,
            )
        )
    return results


@dataclass(frozen=True, eq=False)
class _Tested:
    predicted: Tensor
    seconds: float


@dataclass(frozen=True, eq=False)
class _Columns:
    """A classifier of some of another's classes."""

    whole: Classifier
    columns: Tensor

    @property
    def stats(self) -> dict[str, float]:
        return dict(self.whole.stats)

    def logits(self, features: Tensor) -> Tensor:
        return self.whole.logits(features)[:, self.columns]


def _test(classifier: Classifier, method: Method, features: Tensor) -> _Tested:
    """Predictions; of all images at once where they depend on one another."""
    start = time.perf_counter()
    predicted = classify(classifier, features, len(features) if method.transductive else 4096)
    return _Tested(predicted, time.perf_counter() - start)


def setting_name(method: MethodInfo, protocol: str | None, labeled: bool) -> str:
    """What a result calls its setting: the protocol, else what was learned from.

    Args:
        method: What was fitted.
        protocol: One that has a name of its own.
        labeled: Whether the method learned from a support set.
    """
    if protocol is None:
        unlabeled = "unsupervised" if method.unsupervised() else "zero-shot"
        protocol = "few-shot" if labeled else unlabeled
    return f"transductive {protocol}" if method.transductive else protocol


def _setting(fitted: Fitted, protocol: str | None) -> str:
    labeled = fitted.support is not None and not fitted.method.unsupervised()
    return setting_name(fitted.method, protocol, labeled)


def _require_new_classes(method: Method, setting: str) -> None:
    if not isinstance(method, SupportsNewClasses):
        raise UserError(
            f"{method.name} knows no classes but those it has images of, and {setting} asks for "
            "others; use a method that does, such as zero-shot, gda or clip-adapter"
        )


def _unseen(
    fitted: Fitted, store: FeatureStore, prompt_set: str | None, classes: range
) -> Classifier:
    """A classifier of classes of which there is text alone."""
    method = fitted.method
    _require_new_classes(method, "this")
    assert isinstance(method, SupportsNewClasses)
    text = class_text(store, method, prompt_set, classes)
    if text is None:
        raise UserError(
            f"{store.path} has no text, and classes without images need it; extract it again"
        )
    return method.fit_new_classes(fitted.support, fitted.text, text)


def shared_classes(source: FeatureStore, target: FeatureStore) -> Tensor | None:
    """(C',) the source's ids of the target's classes; None where some are not among them.

    ImageNet's ids decide where both stores have them, for two of its names occur twice.
    """
    names = [list(store.classnames) for store in (source, target)]
    ids = [store.identity["dataset"].get("class_ids") for store in (source, target)]
    known, wanted = ids if all(ids) else names
    if known == wanted:
        return torch.arange(len(known))
    if any((known.count(one), wanted.count(one)) != (1, 1) for one in wanted):
        return None
    return torch.tensor([known.index(one) for one in wanted])


def _result(
    fitted: Fitted,
    store: FeatureStore,
    *,
    setting: str,
    predicted: Tensor,
    labels: Tensor,
    rows: "NDArray[np.int64]",
    seconds: float,
    prompt_set: str | None,
    fixed: Collection[str],
    accuracies: dict[str, float] | None = None,
    overall: float | None = None,
    fitted_on: str | None = None,
    imbalance: str | None = None,
    save: Path | None = None,
) -> Result:
    values: dict[str, Any] = asdict(fitted.method)
    result = Result(
        method=fitted.method.name,
        dataset=store.dataset,
        model=store.model,
        setting=setting,
        fitted_on=fitted_on or store.dataset,
        shots=fitted.shots,
        seed=fitted.seed,
        tune=fitted.tune,
        imbalance=imbalance,
        accuracy=accuracy(predicted, labels) if overall is None else overall,
        per_class_accuracy=per_class_accuracy(predicted, labels),
        accuracies=accuracies or {},
        hyperparameters=values,
        fixed=sorted(fixed),
        measures=dict(fitted.classifier.stats),
        text_recipe=None if fitted.text is None else fitted.method.text_recipe,
        prompt_set=prompt_set,
        n_classes=store.n_classes,
        n_support=fitted.n_images,
        n_views=fitted.support.n_views if fitted.support else 0,
        n_validation=fitted.n_validation,
        n_test=len(labels),
        fit_seconds=fitted.seconds,
        predict_seconds=seconds,
        predictions=None,
        fingerprint=store.fingerprint,
        version=program_version(),
    )
    images = digest_of_images(store.dataset, store.labels("test"), rows)
    return with_predictions(result, save, store.classnames, images, predicted, labels)


def with_predictions(
    result: Result,
    folder: Path | None,
    classnames: Sequence[str],
    images: str,
    predicted: Tensor,
    labels: Tensor,
) -> Result:
    """The result with its predictions written into the folder, if there is one.

    Args:
        result: What they are of.
        folder: Where to.
        classnames: C names by class id.
        images: Digest of which images they are, by `digest_of_images`.
        predicted: (M,) class ids.
        labels: (M,) the true ones.
    """
    if folder is None:
        return result
    path = folder / file_name(result.cell())
    content = Predictions(predicted.numpy(), labels.numpy(), tuple(classnames), images)
    write_predictions(path, content)
    return result.saved_as(str(path))
