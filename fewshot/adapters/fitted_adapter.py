"""An adapter of what was fitted to features, calibrated on images it was not fitted to."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from cache.errors import UserError
from cache.pair import Pair
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter, require_suffix
from fewshot.adapters.classifiers import take_apart
from fewshot.adapters.first_model import FirstModel
from fewshot.evaluation import score
from fewshot.fitted import Fitted
from fewshot.fitting import fit
from fewshot.label_rule import LabelRule
from fewshot.method import Method
from fewshot.methods import GDA
from fewshot.model_selection.calibration import Calibration, calibrate, out_of_fold
from fewshot.model_selection.conformal import ByClass, by_class
from fewshot.model_selection.unknown_classes import OpenSet, find_open_set
from fewshot.multi_label.label_evaluation import refuse_predictions, score_labels
from fewshot.multi_label.label_fitting import fit_labels
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result, program_version
from fewshot.settling import settled
from fewshot.store_features import class_text


def of_fitted(
    fitted: Fitted,
    *,
    calibration: Calibration,
    held_out: ByClass = (),
    open_set: OpenSet | None = None,
    label_rule: LabelRule | None = None,
    more: Mapping[str, Any] | None = None,
) -> Adapter:
    """The adapter of a method that was fitted to a store's features.

    Args:
        fitted: What `fitting.fit` gave for all classes of the store.
        calibration: How sure it may be.
        held_out: By `conformal.by_class`, at the calibration's temperature.
        open_set: The score that finds images of no class.
        label_rule: From logits to labels, where an image may have several.
        more: What else is worth keeping of the training, such as the accuracy on the test split.
    """
    method, store = fitted.method, fitted.store
    own = store.alone if isinstance(store, Pair) else store
    plain, tensors = take_apart(fitted.classifier)
    training = {
        "dataset": store.dataset,
        "fingerprint": store.fingerprint,
        "imported": store.imported,
        "shots": fitted.run.shots,
        "seed": fitted.run.seed,
        "tune": fitted.run.tune,
        "images": fitted.n_images,
        "images per class": None if fitted.support is None else fitted.support.counts.tolist(),
        "views": fitted.support.n_views if fitted.support else 0,
        "validation images": fitted.n_validation,
        "text recipe": None if fitted.text is None else method.text_recipe,
        "prompt set": fitted.run.prompt_set,
        "versions": {**store.versions, "fewshot-clip": program_version()},
        **(more or {}),
    }
    return Adapter(
        method=method.name,
        settings=asdict(method),
        model=own.identity["model"],
        preprocessing=own.preprocessing,
        precision=str(own.identity.get("precision") or "fp32"),
        classnames=store.classnames,
        prompts=_prompts(fitted),
        templates=(),
        training=training,
        calibration=calibration,
        classifier=plain,
        tensors=tensors,
        held_out=tuple(map(tuple, held_out)),
        open_set=open_set,
        label_rule=label_rule,
        beside=FirstModel.of(store) if isinstance(store, Pair) else None,
    )


def _prompts(fitted: Fitted) -> tuple[tuple[str, ...], ...]:
    """Each class's sentences."""
    if fitted.text is None:
        return ()
    store = fitted.store
    text = store.class_text(fitted.method.text_recipe, fitted.run.prompt_set)
    by_class: list[list[str]] = [[] for _ in store.classnames]
    for sentence, label in zip(text.sentences, text.labels.tolist(), strict=True):
        by_class[label].append(sentence)
    return tuple(map(tuple, by_class))


def fit_and_save(
    store: FeatureStore,
    method: Method | str,
    path: Path,
    protocol: Protocol | None = None,
    *,
    predictions: Path | None = None,
    temperature: float | None = None,
    **asked: Unpack[Asked],
) -> tuple[Adapter, Result | None]:
    """Fit a method to a store's few shots and save it as an adapter, calibrated on folds of them.

    Args:
        store: The features.
        method: A method, or its name, as in `fitting.fit`.
        path: The file to write.
        protocol: What is asked; the default `Protocol()` without it.
        predictions: A folder to write the predictions on the test split into.
        temperature: Of the adapter's probabilities; found on the folds without it.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Returns:
        The adapter, and its result on the test split; None where the store has none.

    Raises:
        UserError: What `fit` raises, the path is no name for an adapter, or the setting is not
            few-shot: an adapter is of all classes.
    """
    require_suffix(path)
    _, protocol = settled(store, method, protocol, asked)
    if store.multi_label:
        refuse_predictions(predictions)
        return _labels_saved(store, method, path, protocol)
    if protocol.setting != "few-shot":
        raise UserError(f"an adapter keeps one classifier of all classes; got {protocol.setting}")
    fitted = fit(store, method, protocol)
    store = fitted.store
    result, more = None, {}
    if "test" in store.splits:
        result = score(fitted, save=predictions)
        more = {"test accuracy": result.accuracy, "test images": result.n_test}
    held = out_of_fold(
        fitted.method,
        fitted.support,
        fitted.text,
        logit_scale=store.logit_scale,
        share=fitted.run.blend,
    )
    calibration = Calibration() if held is None else calibrate(*held, "cv", at=temperature)
    text = class_text(store, GDA(), fitted.run.prompt_set, range(store.n_classes))
    adapter = of_fitted(
        fitted,
        calibration=calibration,
        held_out=() if held is None else by_class(*held, calibration.temperature),
        open_set=find_open_set(fitted.support, text, logit_scale=store.logit_scale),
        more=more,
    )
    adapter.save(path)
    return adapter, result


def _labels_saved(
    store: FeatureStore, method: Method | str, path: Path, protocol: Protocol
) -> tuple[Adapter, Result | None]:
    """`fit_and_save` where images may have several labels.

    Raises:
        UserError: What `fit_labels` raises, or there is no rule that makes labels of logits.
    """
    fitted = fit_labels(store, method, protocol)
    if fitted.rule is None or fitted.label_support is None:
        raise UserError(
            f"{fitted.method.name} has no held-out images here to say from which probability on a "
            "class is a label; give two shots or more, and for zero-shot use nearest-mean with "
            "--set text_weight=1, which ranks alike"
        )
    result = score_labels(fitted) if "test" in store.splits else None
    adapter = of_fitted(
        fitted,
        calibration=Calibration(),
        label_rule=fitted.rule,
        more={
            "images per class": fitted.label_support.counts.tolist(),
            "views": fitted.label_support.n_views,
            **({} if result is None else {"test images": result.n_test}),
        },
    )
    adapter.save(path)
    return adapter, result
