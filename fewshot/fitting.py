"""A method fitted to a store's few shots: drawn, tuned and fitted, the test split never read."""

import time
from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cache.errors import UserError, unknown
from cache.store import FeatureStore
from fewshot.classifier import Classifier
from fewshot.method import Method, MethodInfo
from fewshot.model_selection import tuning
from fewshot.sampling import Rows, Sample, draw, restrict
from fewshot.support import SupportSet
from fewshot.text import Text

Labeled = tuple[Tensor, Tensor]  # features (M, D) float32 and labels (M,)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier, and what it was made of.

    Attributes:
        method: With its hyper-parameters as tuned.
        classifier: What it made.
        support: What it learned from; None where it learned from no labels.
        text: The classes' text, or None.
        shots: K, images per class; the most of any class where they differ; 0 without labels.
        seed: What drew them, and what training used; 0 without labels.
        tune: The tuning protocol.
        n_images: N of the support set, or of the unlabeled images, or 0.
        n_validation: Labeled images besides the support set that tuning looked at.
        seconds: Tuning and fitting, from features in memory.
    """

    method: Method
    classifier: Classifier
    support: SupportSet | None
    text: Text | None
    shots: int
    seed: int
    tune: str
    n_images: int
    n_validation: int
    seconds: float


def fit(
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
    classes: range | None = None,
) -> Fitted:
    """Draw the few shots, tune on them, and fit.

    What learns from no labels has shots and seed 0 whatever was asked for.

    Args:
        store: The features.
        method: What to fit, with the hyper-parameters that tuning starts from. Its logit scale is
            used as it is; `configure` sets the store's.
        shots: K, images per class; 0 for a method that can do without.
        seed: What draws them, and what a method that is trained draws its random numbers from.
        tune: The protocol, one of `PROTOCOLS`; without it `default_protocol`'s. Where there is
            nothing to tune the result says `none`.
        fixed: Hyper-parameters that are not tuned but stay as the method has them.
        prompt_set: Which prompts of the store make the text features; the dataset's own without it.
        sample: Few shots to use instead of drawing some; `shots` and `seed` are then its own.
        views: Learn from the store's augmented views where it has some, else from center crops.
        classes: The run of classes to learn, cut out of the sample of all; all without it.

    Raises:
        UserError: Too few images of a class, a protocol that needs a val split where there is none,
            a method that needs text where there is none, or what the store itself objects to.
    """
    classes = range(store.n_classes) if classes is None else classes
    grid = {name: values for name, values in method.grid.items() if name not in fixed}
    _check_protocol(store, tune)
    text = class_text(store, method, prompt_set, classes)
    if not (method.needs_support(shots) or (sample is not None and method.takes_support())):
        given = _images(store, method, classes) if method.unsupervised() else None
        start = time.perf_counter()
        classifier = method.fit_unlabeled(given, text)
        seconds = time.perf_counter() - start
        n = 0 if given is None else len(given)
        return Fitted(method, classifier, None, text, 0, 0, "none", n, 0, seconds)
    sample = sample or draw(
        store.labels("train"),
        store.classnames,
        shots=shots,
        seed=seed,
        val_labels=store.labels("val") if tune == "val" else None,
    )
    support = _support(store, method, sample, classes, views)
    protocol = protocol_used(method, tune, fixed, support.shots)
    validation = _validation(store, method, sample, protocol, classes)
    if "seed" in {field.name for field in fields(method)} - set(fixed):
        method = replace(method, seed=sample.seed)
    start = time.perf_counter()
    method = tuning.tune(method, support, text, protocol=protocol, validation=validation, grid=grid)
    classifier = method.fit(support, text)
    return Fitted(
        method,
        classifier,
        support,
        text,
        shots=sample.shots,
        seed=sample.seed,
        tune=protocol,
        n_images=len(support.labels),
        n_validation=len(validation[1]) if validation else 0,
        seconds=time.perf_counter() - start,
    )


def class_text(
    store: FeatureStore, method: Method, prompt_set: str | None, classes: range
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


def query(store: FeatureStore, method: Method, split: str, rows: Rows | None = None) -> Tensor:
    """(M, D) features to classify, in the form that the method wants."""
    return torch.from_numpy(store.features(split, rows, unit=method.unit_norm))


def protocol_used(method: MethodInfo, tune: str | None, fixed: Collection[str], shots: int) -> str:
    """The tuning protocol that `fit` uses on a support set: `none` where nothing is left to tune.

    Args:
        method: What is fitted.
        tune: The protocol asked for; without it the default.
        fixed: Hyper-parameters that are not tuned.
        shots: The images of the smallest class.
    """
    if not set(method.grid) - set(fixed):
        return "none"
    return tune or tuning.default_protocol(shots)


def _images(store: FeatureStore, method: Method, classes: range) -> Tensor:
    """(U, D) features of all train images of the classes that the store has, without labels."""
    train = store.split("train")
    rows = train.encoded
    kept, _ = restrict(train.labels[rows], classes)
    return query(store, method, "train", rows[kept])


def _check_protocol(store: FeatureStore, tune: str | None) -> None:
    if tune is not None and tune not in tuning.PROTOCOLS:
        raise unknown("tuning protocol", tune, tuning.PROTOCOLS)
    if tune in ("val", "full-val") and "val" not in store.splits:
        raise UserError(
            f"{store.dataset} has no val split for tuning by {tune}, and the test split is not for "
            "tuning; use cv or none"
        )


def _support(
    store: FeatureStore, method: Method, sample: Sample, classes: range, views: bool
) -> SupportSet:
    """The few shots' features, with their views where they are wanted and there are some."""
    train = store.split("train")
    kept, labels = restrict(train.labels[sample.train], classes)
    rows = sample.train[kept]
    stored = train.views(rows, unit=method.unit_norm) if views and train.n_views else None
    return SupportSet(
        features=query(store, method, "train", rows),
        labels=torch.from_numpy(labels),
        n_classes=len(classes),
        views=None if stored is None else torch.from_numpy(stored),
        unit_norm=method.unit_norm,
    )


def _validation(
    store: FeatureStore, method: Method, sample: Sample, tune: str, classes: range
) -> Labeled | None:
    """The validation images that the protocol tunes on, if it tunes on any."""
    if tune not in ("val", "full-val"):
        return None
    labels = store.labels("val")
    rows = torch.arange(len(labels)).numpy() if tune == "full-val" else sample.val
    if rows is None:
        raise UserError("the sample has no val rows to tune by val on; tune by cv, or draw anew")
    kept, labels = restrict(labels[rows], classes)
    return query(store, method, "val", rows[kept]), torch.from_numpy(labels)
