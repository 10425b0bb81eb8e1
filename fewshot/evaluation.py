"""Store, method and protocol in; the accuracy on the test split out.

    evaluate       learn and test on one dataset: few-shot, zero-shot, imbalanced, unsupervised
    base_to_new    learn half of the classes, test both halves, each among its own or all together
    transfer       learn one dataset, test others
    open set       by `evaluate`: learn the known classes, test these among unknown ones

The setting is written into the result, and results of different settings are never averaged.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.split import Split
from cache.store import FeatureStore
from fewshot.classifier import Classifier, classify
from fewshot.fitting import Fitted, class_text, fit, query, settled
from fewshot.method import Method, SupportsNewClasses
from fewshot.metrics import accuracy, harmonic_mean, per_class_accuracy
from fewshot.open_set import auroc, checked_known, classify_and_score, fpr_at_95, known_classes
from fewshot.protocol import HALVES, Asked, Protocol
from fewshot.results.log import Result, program_version
from fewshot.results.prediction_files import Predictions, digest_of_images, write_predictions
from fewshot.run import CLASS_GROUPS, Run, setting_name
from fewshot.sampling import halves, restrict

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    method, protocol = settled(store, method, protocol, asked)
    if protocol.setting == "base-to-new":
        return _base_to_new(store, method, protocol, save)
    if protocol.setting == "generalized":
        return _generalized(store, method, protocol, save)
    if protocol.setting == "open-set":
        return _open_set(store, method, protocol, save)
    test = require_test_split(store)
    return _score(fit(store, method, protocol), store, test, save)


def score(fitted: Fitted, store: FeatureStore, *, save: Path | str | None = None) -> Result:
    """The accuracy on the test split of what was fitted to the store's few shots.

    Args:
        fitted: As `fitting.fit` gave it, of all classes.
        store: The features it was fitted to.
        save: A folder to write the predictions into.

    Raises:
        UserError: No test split.
    """
    return _score(fitted, store, require_test_split(store), save)


def _score(fitted: Fitted, store: FeatureStore, test: Split, save: Path | str | None) -> Result:
    tested = _test(fitted.classifier, fitted.method, query(test, fitted.method))
    labels = torch.from_numpy(test.labels)
    accuracies = {}
    if fitted.run.imbalance is not None and fitted.support is not None:
        counts = fitted.support.counts[labels]
        for group, sizes in CLASS_GROUPS.items():
            rows = (counts >= sizes.start) & (counts < sizes.stop)
            if rows.any():
                accuracies[group] = accuracy(tested.predicted[rows], labels[rows])
    return _result(fitted, fitted.run, store, test, tested, accuracies=accuracies, save=save)


def base_to_new(
    store: FeatureStore | Path | str,
    method: Method | str,
    protocol: Protocol | None = None,
    *,
    save: Path | str | None = None,
    **asked: Unpack[Asked],
) -> Result:
    """Learn the base classes, then test these among themselves and the new classes likewise.

    The base classes are the first half; the few shots of all classes are drawn first and then
    cut down to them, as CoCoOp does (https://arxiv.org/abs/2203.05557). Validation images are of
    base classes alone. The result's accuracy is the harmonic mean; `accuracies` has `base` and
    `new`.

    With `synthesize`, a generator learns from the few shots and makes features of the new classes.
    The method learns from both, and its one classifier of all classes is asked for either half.
    Tuning and the share of zero-shot go by real images alone.

    Args:
        store: The features, or the file of them.
        method: A method, or its name, as in `fitting.fit`.
        protocol: What is asked; the default `Protocol()` without it.
        save: A folder to write the predictions into.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: As `evaluate`, and for a method that cannot classify classes without images.
    """
    store = FeatureStore.of(store)
    method, protocol = settled(store, method, protocol, {**asked, "setting": "base-to-new"})
    return _base_to_new(store, method, protocol, save)


def _base_to_new(
    store: FeatureStore, method: Method, protocol: Protocol, save: Path | str | None
) -> Result:
    test = require_test_split(store)
    base, new = _halves(store, method, protocol)
    fitted = fit(store, method, protocol, classes=base)
    if protocol.synthesize is None:
        classifiers = [fitted.classifier, _unseen(fitted, store, new)]
    else:
        classifiers = [_Columns(fitted.classifier, torch.tensor(c)) for c in (base, new)]
    predicted, rows, accuracies = [], [], {}
    seconds = 0.0
    for name, classes, classifier in zip(("base", "new"), (base, new), classifiers, strict=True):
        here, truth = restrict(test.labels, classes)
        tested = _test(classifier, method, query(test, method, here))
        accuracies[name] = accuracy(tested.predicted, torch.from_numpy(truth))
        seconds += tested.seconds
        predicted.append(tested.predicted + classes.start)
        rows.append(here)
    return _result(
        fitted,
        fitted.run,
        store,
        test,
        _Tested(torch.cat(predicted), seconds),
        rows=np.concatenate(rows),
        accuracies=accuracies,
        overall=harmonic_mean(accuracies["base"], accuracies["new"]),
        save=save,
    )


def _generalized(
    store: FeatureStore, method: Method, protocol: Protocol, save: Path | str | None
) -> Result:
    """Learn the base classes, and test all: generalized zero-shot learning.

    S and U are the mean accuracies per class, of seen and of unseen ones (Xian et al., "Zero-Shot
    Learning - A Comprehensive Evaluation of the Good, the Bad and the Ugly", TPAMI 2019,
    https://arxiv.org/abs/1707.00600), and the accuracy is their harmonic mean.
    """
    test = require_test_split(store)
    seen, unseen = _halves(store, method, protocol)
    fitted = fit(store, method, protocol, classes=seen)
    classifier = fitted.classifier
    if protocol.synthesize is None:
        classifier = _SideBySide((classifier, _unseen(fitted, store, unseen)))
    tested = _test(classifier, method, query(test, method))
    accuracies = {}
    for name, classes in (("seen", seen), ("unseen", unseen)):
        rows = torch.from_numpy(restrict(test.labels, classes)[0])
        truth = torch.from_numpy(test.labels)[rows]
        accuracies[name] = per_class_accuracy(tested.predicted[rows], truth)
    overall = harmonic_mean(accuracies["seen"], accuracies["unseen"])
    return _result(
        fitted, fitted.run, store, test, tested, accuracies=accuracies, overall=overall, save=save
    )


def _halves(store: FeatureStore, method: Method, protocol: Protocol) -> tuple[range, range]:
    """The base classes and the new ones.

    Raises:
        UserError: They are too few, or the method cannot classify new ones.
    """
    if protocol.synthesize is None:
        _require_new_classes(method, protocol.setting)
    labels = store.labels("train") if "train" in store.splits else ()
    base, new = halves(labels, store.n_classes)
    if len(new) < 2:
        raise UserError(
            f"{protocol.setting} needs four classes or more, two to tell apart in each half; "
            f"{store.dataset} has {store.n_classes}; leave {protocol.setting} out"
        )
    return base, new


def _open_set(
    store: FeatureStore, method: Method, protocol: Protocol, save: Path | str | None
) -> Result:
    test = require_test_split(store)
    assert protocol.known is not None
    known = np.array(known_classes(store.classnames, checked_known(protocol.known)))
    ours = np.isin(test.labels, known)
    if ours.all() or not ours.any():
        kind = "unknown" if ours.all() else "known"
        raise UserError(f"{store.path} has no test image of {kind} classes; name other classes")
    fitted = fit(store, method, protocol)
    features = query(test, method)
    start = time.perf_counter()
    block = len(features) if method.transductive else 4096
    predicted, scores = classify_and_score(
        fitted.classifier, features, protocol.score, store.logit_scale, block
    )
    seconds = time.perf_counter() - start
    rows = np.flatnonzero(ours)
    named = torch.from_numpy(known)[predicted[rows]]
    right = accuracy(named, torch.from_numpy(test.labels[rows]))
    area = auroc(scores[ours], scores[~ours])
    passing = fpr_at_95(scores[ours], scores[~ours])
    return _result(
        fitted,
        fitted.run,
        store,
        test,
        _Tested(named, seconds),
        rows=rows,
        accuracies={"known": right, "auroc": area, "fpr95": passing},
        overall=harmonic_mean(right, area),
        save=save,
    )


def transfer(
    source: FeatureStore | Path | str,
    targets: Collection[FeatureStore | Path | str],
    method: Method | str,
    protocol: Protocol | None = None,
    *,
    save: Path | str | None = None,
    **asked: Unpack[Asked],
) -> list[Result]:
    """Fit on one dataset, then test on others; a result for each.

    Where a target's classes are among the source's, as those of ImageNet's variants are, the
    logits of these are looked at and the setting is domain generalization. Where they are not, the
    method has to classify classes of which it has text alone, and the setting is cross-dataset.

    Args:
        source: The store that the few shots are drawn from.
        targets: Stores of the same model with a test split each, or their files.
        method: A method, or its name, as in `fitting.fit`.
        protocol: What is asked; the default `Protocol()` without it. Its prompt set makes the text
            features of source and targets. The setting is the targets'.
        save: A folder to write the predictions into.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: As `evaluate`; stores of different models; or, across datasets, a method that
            cannot classify classes without images.
    """
    source, opened = FeatureStore.of(source), [FeatureStore.of(target) for target in targets]
    method, protocol = settled(source, method, protocol, {**asked, "setting": "cross-dataset"})
    columns, tests = {}, {}
    for target in opened:
        require_one_model(source, target)
        columns[target.path] = shared_classes(source, target)
        tests[target.path] = require_test_split(target)
        if columns[target.path] is None:
            _require_new_classes(method, "cross-dataset")
    fitted = fit(source, method, protocol)
    results = []
    for target in opened:
        chosen = columns[target.path]
        classifier: Classifier
        if chosen is None:
            setting, classifier = "cross-dataset", _unseen(fitted, target, range(target.n_classes))
        else:
            setting, classifier = "domain-generalization", _Columns(fitted.classifier, chosen)
        run = replace(
            fitted.run,
            dataset=target.dataset,
            fingerprint=target.fingerprint,
            setting=setting_name(method, setting),
        )
        test = tests[target.path]
        tested = _test(classifier, method, query(test, method))
        results.append(_result(fitted, run, target, test, tested, save=save))
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


def require_one_model(source: FeatureStore, target: FeatureStore) -> None:
    """Raise unless both stores hold features of one model."""
    if target.model != source.model:
        raise UserError(
            f"{target.path} holds features of {target.model} and {source.path} of "
            f"{source.model}; extract both with one model"
        )


@dataclass(frozen=True, eq=False)
class _SideBySide:
    """A classifier of the classes of several, one after another."""

    parts: tuple[Classifier, ...]

    @property
    def stats(self) -> dict[str, float]:
        return dict(self.parts[0].stats)

    def logits(self, features: Tensor) -> Tensor:
        return torch.cat([part.logits(features) for part in self.parts], dim=1)


def require_test_split(store: FeatureStore) -> Split:
    """The test split.

    Raises:
        UserError: There is none.
    """
    if "test" not in store.splits:
        if store.imported:
            remedy = "import test features as well"
        elif "all for training" in str(store.identity["dataset"].get("origin")):
            remedy = "extract without --all-train"
        else:
            remedy = "add a folder of test images and extract again with --if-exists overwrite"
        raise UserError(
            f"{store.path} has no test split, so there is nothing to report; keep a classifier "
            f"of it with --save FILE.safetensors, or {remedy}"
        )
    return store.split("test")


def _test(classifier: Classifier, method: Method, features: Tensor) -> _Tested:
    """Predictions; of all images at once where they depend on one another."""
    start = time.perf_counter()
    predicted = classify(classifier, features, len(features) if method.transductive else 4096)
    return _Tested(predicted, time.perf_counter() - start)


def _require_new_classes(method: Method, setting: str) -> None:
    if not isinstance(method, SupportsNewClasses):
        raise UserError(
            f"{method.name} knows no classes but those it has images of, and {setting} asks for "
            "others; use a method that does, such as zero-shot, gda or clip-adapter"
            + (", or synthesize features of them" if setting in HALVES else "")
        )


def _unseen(fitted: Fitted, store: FeatureStore, classes: range) -> Classifier:
    """A classifier of classes of which there is text alone."""
    method = fitted.method
    _require_new_classes(method, "this")
    assert isinstance(method, SupportsNewClasses)
    text = class_text(store, method, fitted.run.prompt_set, classes)
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
    run: Run,
    store: FeatureStore,
    test: Split,
    tested: _Tested,
    *,
    rows: "NDArray[np.int64] | None" = None,
    accuracies: dict[str, float] | None = None,
    overall: float | None = None,
    save: Path | str | None = None,
) -> Result:
    """The result on these rows, or all, of the store's test split."""
    rows = np.arange(len(test)) if rows is None else rows
    return result_of(
        run,
        tested.predicted,
        torch.from_numpy(test.labels[rows]),
        store.classnames,
        digest_of_images(store.dataset, test.labels, rows),
        accuracies=accuracies or {},
        overall=overall,
        save=save,
        hyperparameters=asdict(fitted.method),
        measures={**fitted.classifier.stats, **fitted.measures},
        text_recipe=None if fitted.text is None else fitted.method.text_recipe,
        n_support=fitted.n_images,
        n_validation=fitted.n_validation,
        fit_seconds=fitted.seconds,
        predict_seconds=tested.seconds,
    )


def result_of(
    run: Run,
    predicted: Tensor,
    labels: Tensor,
    classnames: Sequence[str],
    images: str,
    *,
    accuracies: dict[str, float] | None = None,
    overall: float | None = None,
    save: Path | str | None = None,
    **took: Any,
) -> Result:
    """The result that predictions on a test split are, which are written into the folder if any.

    Args:
        run: What was run.
        predicted: (M,) class ids.
        labels: (M,) the true ones.
        classnames: C names by class id.
        images: Digest of which images they are, by `digest_of_images`.
        accuracies: Accuracies on parts of the test split.
        overall: The accuracy where it is not the share of all images that are right.
        save: A folder to write the predictions into.
        **took: What it took: the other attributes of `Result`.
    """
    path = None if save is None else Path(save) / run.file_name
    if path is not None:
        content = Predictions(predicted.numpy(), labels.numpy(), tuple(classnames), images)
        write_predictions(path, content)
    return Result(
        **vars(run),
        accuracy=accuracy(predicted, labels) if overall is None else overall,
        per_class_accuracy=per_class_accuracy(predicted, labels),
        accuracies=accuracies or {},
        n_classes=len(classnames),
        n_test=len(labels),
        predictions=None if path is None else str(path),
        version=program_version(),
        **took,
    )
