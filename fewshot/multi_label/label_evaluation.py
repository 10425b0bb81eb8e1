"""The result on a test split whose images may have several labels: mAP, F1, precision, recall."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import torch

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.method import Method
from fewshot.multi_label.label_fitting import FittedLabels, fit_labels
from fewshot.multi_label.label_metrics import (
    average_precisions,
    mean_known,
    micro_f1,
    precision_recall_f1,
)
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result, program_version
from fewshot.tested import image_digest, require_test_split


def evaluate_labels(
    store: FeatureStore | Path | str,
    method: Method | str,
    protocol: Protocol | None = None,
    **asked: Unpack[Asked],
) -> Result:
    """Fit by `fit_labels`, and only then classify the test split.

    Raises:
        UserError: What `fit_labels` raises, or no test split.
    """
    store = FeatureStore.of(store)
    require_test_split(store)
    return score_labels(fit_labels(store, method, protocol, **asked))


def score_labels(fitted: FittedLabels) -> Result:
    """The result on the test split of what was fitted.

    Its accuracy is the mean average precision. Without a rule there are no labels, and so no F1.

    Raises:
        UserError: No test split, or none of its images has a label.
    """
    test = require_test_split(fitted.store)
    start = time.perf_counter()
    features = torch.from_numpy(test.features(unit=fitted.method.unit_norm))
    logits = torch.cat([fitted.classifier.logits(part) for part in torch.split(features, 4096)])
    seconds = time.perf_counter() - start
    truth = torch.from_numpy(test.label_sets)
    by_class = {
        "test images": truth.sum(dim=0).double().tolist(),
        "average precision": average_precisions(logits, truth),
    }
    reached = mean_known(by_class["average precision"])
    overall = {"mAP": reached}
    if fitted.rule is not None:
        predicted = fitted.rule.labels(fitted.rule.probabilities(logits))
        for name, values in zip(
            ("precision", "recall", "F1"), precision_recall_f1(predicted, truth), strict=True
        ):
            by_class[name] = values
            overall[f"macro {name}"] = mean_known(values)
        overall["micro F1"] = micro_f1(predicted, truth)
        by_class["threshold"] = list(fitted.rule.thresholds)
    return Result(
        **vars(fitted.run),
        accuracy=reached,
        per_class_accuracy=reached,
        accuracies=overall,
        by_class=_plain(by_class),
        classnames=list(fitted.store.classnames),
        hyperparameters=asdict(fitted.method),
        measures={**fitted.classifier.stats, **fitted.measures},
        text_recipe=None if fitted.text is None else fitted.method.text_recipe,
        n_classes=fitted.store.n_classes,
        n_support=fitted.n_images,
        n_validation=0,
        n_test=len(test),
        fit_seconds=fitted.seconds,
        predict_seconds=seconds,
        predictions=None,
        version=program_version(),
        image_digest=image_digest(fitted.store),
    )


def _plain(by_class: Mapping[str, list[float]]) -> dict[str, list[float | None]]:
    """The values with None for NaN, which JSON lacks."""
    return {
        name: [None if math.isnan(value) else value for value in values]
        for name, values in by_class.items()
    }


def refuse_predictions(save: Path | str | None) -> None:
    """Raise if predictions are to be saved for `compare`, which is of one label each.

    Raises:
        UserError: They are.
    """
    if save is not None:
        raise UserError(
            "--save-predictions keeps one class of each image; leave it out, or use `predict`, "
            "which writes all labels"
        )
