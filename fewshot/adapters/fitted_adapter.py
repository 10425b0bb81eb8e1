"""An adapter of what was just fitted or trained, calibrated on images it was not fitted to."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from cache.datasets.source import Source
from cache.errors import UserError
from cache.extraction.provenance import versions
from cache.models.encoder import Encoder
from cache.pair import Pair
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter, require_suffix
from fewshot.adapters.classifiers import take_apart
from fewshot.adapters.first_model import FirstModel
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.experiment import Trained
from fewshot.endtoend.photos import center_crops, require_images
from fewshot.endtoend.privacy import ACCOUNT
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
from fewshot.sampling import VAL_SHOTS, draw
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
        preprocessing={} if own.imported else own.identity.get("preprocessing") or {},
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


def of_trained(
    trained: Trained,
    method: EndToEnd,
    encoder: Encoder,
    source: Source,
    *,
    workers: int = 2,
    batch_size: int = 64,
) -> Adapter:
    """The adapter of a method that was trained end to end.

    It is calibrated on min(K, 4) validation images of each class, drawn beside the few shots as
    CoOp draws them, or on the first of each where a class has fewer; where there is no val split,
    or it was trained without labels, it is not.

    Args:
        trained: What `run` gave.
        method: What was trained.
        encoder: On what model.
        source: On which images.
        workers: Threads that decode.
        batch_size: Images per forward pass.

    Raises:
        UserError: A validation image cannot be read.
    """
    result = trained.result
    training = {
        "dataset": source.dataset,
        "fingerprint": result.fingerprint,
        "imported": False,
        "shots": result.shots,
        "seed": result.seed,
        "tune": result.tune,
        "images": result.n_support,
        "views": result.n_views,
        "crops": {k: result.hyperparameters.get(k) for k in ("crop_scale", "flip")},
        "test accuracy": result.accuracy,
        "test images": result.n_test,
        "versions": {**versions(), "fewshot-clip": program_version()},
    }
    if account := {name: result.measures[name] for name in ACCOUNT if name in result.measures}:
        training["privacy"] = account
    logits, labels = _validation(trained, encoder, source, workers, batch_size)
    calibration = calibrate(logits, labels, "val")
    return Adapter(
        method=method.name,
        settings=asdict(method),
        model=dict(encoder.identity),
        preprocessing={**encoder.preprocess.identity(), "exif": source.exif},
        precision=encoder.precision,
        classnames=source.classnames,
        prompts=(),
        templates=source.templates,
        training=training,
        calibration=calibration,
        classifier=None,
        tensors=trained.learner.state(),
        held_out=by_class(logits, labels, calibration.temperature),
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


@torch.no_grad()
def _validation(
    trained: Trained, encoder: Encoder, source: Source, workers: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """(M, C) logits of validation images and (M,) their labels.

    M is 0 without such images, and where the training had no labels.
    """
    val, shots = source.splits.get("val", ()), trained.result.shots
    learner, clip = trained.learner, trained.clip
    if not val or not shots:
        return torch.zeros(0, len(source.classnames)), torch.zeros(0, dtype=torch.int64)
    labels = [item.label for item in val]
    of_class = [np.flatnonzero(np.equal(labels, k)) for k in range(len(source.classnames))]
    if min(map(len, of_class)) < min(shots, VAL_SHOTS):  # after hours of training: what there is
        rows = np.concatenate([rows[:VAL_SHOTS] for rows in of_class]).tolist()
    else:
        train = [item.label for item in source.splits["train"]]
        seed = trained.result.seed
        drawn = draw(train, source.classnames, shots=shots, seed=seed, val_labels=labels).val
        assert drawn is not None
        rows = drawn.tolist()
    items = [val[row] for row in rows]
    paths = [item.path for item in items]
    require_images(source, paths, workers=workers)
    encode = learner.images or clip.model.encode_image
    crops = center_crops(source, paths, encoder.preprocess, batch_size=batch_size, workers=workers)
    with clip.autocast():
        fixed = learner.frozen()
        logits = [fixed.logits(encode(pixels.to(clip.device))).cpu() for pixels in crops]
    return torch.cat(logits), torch.tensor([item.label for item in items])


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
