"""Classes that have text and no image: half of the classes is learned, and both are tested."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError, some
from cache.store import FeatureStore
from fewshot.abilities import SupportsNewClasses
from fewshot.classifier import Classifier
from fewshot.few_shots import base_and_new
from fewshot.fitted import Fitted
from fewshot.fitting import fit
from fewshot.method import Method, MethodInfo
from fewshot.metrics import accuracy, harmonic_mean, per_class_accuracy
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.sampling import restrict
from fewshot.settling import settled
from fewshot.store_features import class_text, query
from fewshot.tested import Classified, by_class_size, classify_test, require_test_split, result_on


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
    configured, protocol = settled(store, method, protocol, {**asked, "setting": "base-to-new"})
    require_test_split(store)
    base, new = _halves(store, configured, protocol)
    fitted = fit(store, method, protocol, classes=base)
    store, method = fitted.store, fitted.method
    test = store.split("test")
    if protocol.synthesize is None:
        classifiers = [fitted.classifier, unseen_classes(fitted, store, new)]
    else:
        classifiers = [Columns(fitted.classifier, torch.tensor(c)) for c in (base, new)]
    predicted, rows, accuracies = [], [], {}
    seconds = 0.0
    for name, classes, classifier in zip(("base", "new"), (base, new), classifiers, strict=True):
        here, truth = restrict(test.labels, classes)
        tested = classify_test(classifier, method, query(test, method, here))
        accuracies[name] = accuracy(tested.predicted, torch.from_numpy(truth))
        seconds += tested.seconds
        predicted.append(tested.predicted + classes.start)
        rows.append(here)
    return result_on(
        fitted,
        fitted.run,
        store,
        test,
        Classified(torch.cat(predicted), seconds),
        rows=np.concatenate(rows),
        accuracies=accuracies,
        overall=harmonic_mean(accuracies["base"], accuracies["new"]),
        save=save,
    )


def generalized(
    store: FeatureStore, method: Method | str, protocol: Protocol, save: Path | str | None
) -> Result:
    """Learn the base classes, and test all: generalized zero-shot learning.

    S and U are the mean accuracies per class, of seen and of unseen ones (Xian et al., "Zero-Shot
    Learning - A Comprehensive Evaluation of the Good, the Bad and the Ugly", TPAMI 2019,
    https://arxiv.org/abs/1707.00600), and the accuracy is their harmonic mean.
    """
    require_test_split(store)
    seen, unseen = _halves(store, settled(store, method, protocol, {})[0], protocol)
    fitted = fit(store, method, protocol, classes=seen)
    store, method = fitted.store, fitted.method
    test = store.split("test")
    classifier = fitted.classifier
    if protocol.synthesize is None:
        classifier = _SideBySide((classifier, unseen_classes(fitted, store, unseen)))
    tested = classify_test(classifier, method, query(test, method))
    accuracies = {}
    for name, classes in (("seen", seen), ("unseen", unseen)):
        rows = torch.from_numpy(restrict(test.labels, classes)[0])
        truth = torch.from_numpy(test.labels)[rows]
        accuracies[name] = per_class_accuracy(tested.predicted[rows], truth)
    overall = harmonic_mean(accuracies["seen"], accuracies["unseen"])
    return result_on(
        fitted, fitted.run, store, test, tested, accuracies=accuracies, overall=overall, save=save
    )


def named_alone(store: FeatureStore) -> list[int]:
    """The ids of the classes that have a name and no train image."""
    if "train" not in store.splits:
        return []
    counts = np.bincount(store.labels("train"), minlength=store.n_classes)
    return np.flatnonzero(counts == 0).tolist()


def require_named_alone(store: FeatureStore, method: MethodInfo) -> None:
    """Raise unless the method can do without train images of the classes that have none.

    Raises:
        UserError: It cannot; names the classes.
    """
    names = [store.classnames[k] for k in named_alone(store)]
    if names:
        require_new_classes(method, f"{store.dataset} has no train image of {some(names)}")


def some_named_alone(
    store: FeatureStore, method: Method | str, protocol: Protocol, save: Path | str | None
) -> Result:
    """Learn the classes that have train images, and test all: VTAB's train splits lack some.

    The others are classified by their text, as the new ones of `generalized`. The accuracy is
    over all test images.
    """
    require_named_alone(store, settled(store, method, protocol, {})[0])
    unseen = named_alone(store)
    seen = sorted({*range(store.n_classes)} - {*unseen})
    fitted = fit(store, method, protocol, classes=seen)
    store = fitted.store
    both = _SideBySide((fitted.classifier, unseen_classes(fitted, store, unseen)))
    classifier = Columns(both, torch.tensor([*seen, *unseen]).argsort())
    test = store.split("test")
    tested = classify_test(classifier, fitted.method, query(test, fitted.method))
    counts = torch.from_numpy(np.bincount(store.labels("train"), minlength=store.n_classes))
    sizes = by_class_size(tested.predicted, torch.from_numpy(test.labels), counts)
    return result_on(fitted, fitted.run, store, test, tested, accuracies=sizes, save=save)


def _halves(store: FeatureStore, method: Method, protocol: Protocol) -> tuple[range, range]:
    """The base classes and the new ones.

    Raises:
        UserError: They are too few, or the method cannot classify new ones.
    """
    if protocol.synthesize is None:
        require_new_classes(method, f"{protocol.setting} asks for others", synthesis=True)
    return base_and_new(store, protocol.setting)


@dataclass(frozen=True, eq=False)
class Columns:
    """A classifier of some of another's classes.

    Attributes:
        whole: The other classifier, of C classes.
        columns: (C',) ids of the classes to choose among.
    """

    whole: Classifier
    columns: Tensor

    @property
    def stats(self) -> dict[str, float]:
        """Measures of the whole."""
        return dict(self.whole.stats)

    def logits(self, features: Tensor) -> Tensor:
        """(M, C') logits of (M, D) features."""
        return self.whole.logits(features)[:, self.columns]


@dataclass(frozen=True, eq=False)
class _SideBySide:
    """A classifier of the classes of several, one after another."""

    parts: tuple[Classifier, ...]

    @property
    def stats(self) -> dict[str, float]:
        return dict(self.parts[0].stats)

    def logits(self, features: Tensor) -> Tensor:
        return torch.cat([part.logits(features) for part in self.parts], dim=1)


def require_new_classes(method: MethodInfo, why: str, *, synthesis: bool = False) -> None:
    """Raise unless the method classifies classes without images.

    Args:
        method: Of any kind.
        why: The reason that it must, as a clause.
        synthesis: Features of such classes can be synthesized.

    Raises:
        UserError: It does not.
    """
    if not isinstance(method, SupportsNewClasses):
        raise UserError(
            f"{method.name} knows no classes but those it has images of, and {why}; use a method "
            "that does, such as zero-shot, gda or clip-adapter"
            + (", or synthesize features of them" if synthesis else "")
        )


def unseen_classes(fitted: Fitted, store: FeatureStore, classes: Sequence[int]) -> Classifier:
    """Return a classifier of classes of which there is text alone.

    Args:
        fitted: What was learned from the images of other classes.
        store: Has the new classes' text.
        classes: Their ids in the store.

    Raises:
        UserError: The method cannot, or there is no text.
    """
    method = fitted.method
    require_new_classes(method, "others are asked for")
    assert isinstance(method, SupportsNewClasses)
    text = class_text(store, method, fitted.run.prompt_set, classes)
    if text is None:
        raise UserError(
            f"{store.path} has no text, and classes without images need it; extract or import a "
            "store with text"
        )
    return method.fit_new_classes(fitted.support, fitted.text, text)
