"""The test split, a classifier's predictions on it, and the result that these are."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.split import Split
from cache.store import FeatureStore
from fewshot.classifier import Classifier, classify
from fewshot.fitted import Fitted
from fewshot.method import Method
from fewshot.metrics import accuracy, per_class_accuracy
from fewshot.results.log import Result, program_version
from fewshot.results.prediction_files import Predictions, digest_of_images, write_predictions
from fewshot.run import CLASS_GROUPS, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Classified:
    """The predictions for test images.

    Attributes:
        predicted: (M,) class ids.
        seconds: Time that classifying took.
    """

    predicted: Tensor
    seconds: float


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


def classify_test(classifier: Classifier, method: Method, features: Tensor) -> Classified:
    """Classify (M, D) features; all at once where they depend on one another."""
    start = time.perf_counter()
    predicted = classify(classifier, features, len(features) if method.transductive else 4096)
    return Classified(predicted, time.perf_counter() - start)


def by_class_size(predicted: Tensor, labels: Tensor, counts: Tensor) -> dict[str, float]:
    """The accuracies over test images of classes of many, medium and few train images.

    Args:
        predicted: (M,) class ids.
        labels: (M,) the true ones.
        counts: (C,) train images of each class.
    """
    accuracies, sizes = {}, counts[labels]
    for group, between in CLASS_GROUPS.items():
        rows = (sizes >= between.start) & (sizes < between.stop)
        if rows.any():
            accuracies[group] = accuracy(predicted[rows], labels[rows])
    return accuracies


def result_on(
    fitted: Fitted,
    run: Run,
    store: FeatureStore,
    test: Split,
    tested: Classified,
    *,
    rows: "NDArray[np.int64] | None" = None,
    accuracies: dict[str, float] | None = None,
    overall: float | None = None,
    save: Path | str | None = None,
) -> Result:
    """The result on these rows, or all, of the store's test split.

    Args:
        fitted: What was fitted.
        run: What was run: the fitted run, or the same on another dataset.
        store: The store that was tested on.
        test: Its test split.
        tested: The predictions, one for each of the rows.
        rows: (M,) rows of the test split.
        accuracies: Accuracies on parts of the test split.
        overall: The accuracy where it is not the share of all images that are right.
        save: A folder to write the predictions into.
    """
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
        image_digest=image_digest(store),
    )


def image_digest(store: FeatureStore) -> str | None:
    """16 hex digits that stand for the bytes of the store's test images; None where unknown."""
    return store.versions.get("test images", "")[:16] or None


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
