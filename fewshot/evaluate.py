"""Store, method, shots and seed in; the accuracy on the test split out."""

import time
from collections.abc import Collection
from dataclasses import asdict

import torch
from torch import Tensor

from cache.errors import UserError, unknown
from cache.store import FeatureStore
from fewshot import tuning
from fewshot.classifier import Grid, Method, predict
from fewshot.metrics import accuracy, per_class_accuracy
from fewshot.results import Result, program_version
from fewshot.sampling import Sample, draw
from fewshot.support import SupportSet

Labelled = tuple[Tensor, Tensor]  # features (M, D) float32 of unit norm, and labels (M,)


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
) -> Result:
    """Draw the few shots, tune and fit on them, and only then classify the test split.

    Zero-shot learns nothing, so its shots and seed are 0 whatever was asked for.

    Args:
        store: The features.
        method: What to fit, with the hyper-parameters that tuning starts from. Its logit scale is
            used as it is; `configure` sets the store's.
        shots: K, images per class.
        seed: What draws them.
        tune: The protocol, one of `PROTOCOLS`; without it `default_protocol`'s. Where there is
            nothing to tune the result says `none`.
        fixed: Hyper-parameters that are not tuned but stay as the method has them.
        prompt_set: Which prompts of the store make the text features; the dataset's own without it.
        sample: Few shots to use instead of drawing some; `shots` and `seed` are then its own.
        views: Learn from the store's augmented views where it has some, else from centre crops.

    Raises:
        UserError: Too few images of a class, a protocol that needs a val split where there is none,
            a method that needs text where there is none, or what the store itself objects to.
    """
    test_labels = torch.from_numpy(store.labels("test"))
    text = _text(store, method, prompt_set)
    support: SupportSet | None = None
    validation: Labelled | None = None
    fitted: Method = method
    if method.needs_support:
        grid = {name: values for name, values in method.grid.items() if name not in fixed}
        tune = _protocol(store, grid, tune, sample.shots if sample else shots)
        sample = sample or _draw(store, shots, seed, tune)
        shots, seed = sample.shots, sample.seed
        support = _support(store, sample, views)
        validation = _validation(store, sample, tune)
        start = time.perf_counter()
        fitted = tuning.tune(method, support, text, protocol=tune, validation=validation, grid=grid)
        classifier = fitted.fit(support, text)
    else:
        shots, seed, tune = 0, 0, "none"
        start = time.perf_counter()
        classifier = method.fit(None, text)  # type: ignore[arg-type]  # which such methods take
    fit_seconds = time.perf_counter() - start
    features = torch.from_numpy(store.features("test"))
    start = time.perf_counter()
    predicted = predict(classifier, features)
    predict_seconds = time.perf_counter() - start
    return Result(
        method=method.name,
        dataset=store.dataset,
        model=store.model,
        setting="few-shot" if support else "zero-shot",
        shots=shots,
        seed=seed,
        tune=tune,
        accuracy=accuracy(predicted, test_labels),
        per_class_accuracy=per_class_accuracy(predicted, test_labels),
        hyperparameters=asdict(fitted),
        text_recipe=None if text is None else method.text_recipe,
        prompt_set=prompt_set,
        n_support=len(support.labels) if support else 0,
        n_views=support.n_views if support else 0,
        n_validation=len(validation[1]) if validation else 0,
        n_test=len(test_labels),
        fit_seconds=fit_seconds,
        predict_seconds=predict_seconds,
        fingerprint=store.fingerprint,
        version=program_version(),
    )


def _text(store: FeatureStore, method: Method, prompt_set: str | None) -> Tensor | None:
    """(C, D) text features by the method's recipe; None where the store has none."""
    if not store.text_sets and prompt_set is None:
        return None
    return torch.from_numpy(store.text(method.text_recipe, prompt_set))


def _protocol(store: FeatureStore, grid: Grid, tune: str | None, shots: int) -> str:
    """The tuning protocol asked for, else the default; none where there is nothing to tune."""
    if tune is not None and tune not in tuning.PROTOCOLS:
        raise unknown("tuning protocol", tune, tuning.PROTOCOLS)
    if tune in ("val", "full-val") and "val" not in store.splits:
        raise UserError(
            f"{store.dataset} has no val split for tuning by {tune}, and the test split is not for "
            "tuning; use cv or none"
        )
    if not grid:
        return "none"
    return tune or tuning.default_protocol(shots)


def _draw(store: FeatureStore, shots: int, seed: int, tune: str) -> Sample:
    """The few shots, with few-shot validation rows where tuning wants them."""
    return draw(
        store.labels("train"),
        store.classnames,
        shots=shots,
        seed=seed,
        val_labels=store.labels("val") if tune == "val" else None,
    )


def _support(store: FeatureStore, sample: Sample, views: bool) -> SupportSet:
    """The few shots' features, with their views where they are wanted and there are some."""
    stored = store.views("train", sample.train) if views and store.n_views("train") else None
    return SupportSet(
        features=torch.from_numpy(store.features("train", sample.train)),
        labels=torch.from_numpy(store.labels("train")[sample.train]),
        n_classes=store.n_classes,
        views=None if stored is None else torch.from_numpy(stored),
    )


def _validation(store: FeatureStore, sample: Sample, tune: str) -> Labelled | None:
    """The validation images that the protocol tunes on, if it tunes on any."""
    if tune not in ("val", "full-val"):
        return None
    rows = None if tune == "full-val" else sample.val
    if tune == "val" and rows is None:
        raise UserError("the sample has no val rows to tune by val on; tune by cv, or draw anew")
    labels = store.labels("val")
    return (
        torch.from_numpy(store.features("val", rows)),
        torch.from_numpy(labels if rows is None else labels[rows]),
    )
