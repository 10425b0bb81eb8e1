"""How sure an adapter may be: judged on labeled images that it was not fitted to."""

import torch
from torch import Tensor

from fewshot.adapters.adapter import Calibration
from fewshot.fitting import Fitted
from fewshot.metrics import wilson
from fewshot.model_selection.calibration import expected_calibration_error, temperature
from fewshot.model_selection.cross_validation import Failed, cross_validate
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import scenes


def calibrate(logits: Tensor, labels: Tensor, source: str) -> Calibration:
    """How sure a classifier may be, from its logits of images it was not fitted to.

    Args:
        logits: (M, C).
        labels: (M,) class ids.
        source: What images these are; see `Calibration`.
    """
    n = len(labels)
    if not n:
        return Calibration()
    t = temperature(logits, labels)
    z = logits.double()
    right = int((z.argmax(dim=1) == labels).sum())
    return Calibration(
        temperature=t,
        images=n,
        source=source,
        accuracy=right / n,
        interval=wilson(right / n, n),
        error=expected_calibration_error(torch.softmax(z / t, dim=1), labels),
        error_before=expected_calibration_error(torch.softmax(z, dim=1), labels),
    )


def cross_validated(fitted: Fitted) -> Calibration:
    """How sure what was fitted may be, from folds of its own support set.

    Each image is classified by the method, its hyper-parameters as they were tuned on all images,
    fitted to the other folds; images of one scene are in one fold. Nothing is known of a method
    that learned from no labels, nor where every class has one image.
    """
    if fitted.support is None:
        return Calibration()
    labels = fitted.support.labels
    tried = cross_validate(
        fitted.method,
        lambda method: fitted.support,  # type: ignore[arg-type, return-value]  # it is not None
        lambda method: fitted.text,
        folds(labels, groups=scenes(fitted.support.features, labels)),
        tune=False,
    )
    if isinstance(tried, Failed):
        return Calibration()
    return calibrate(tried.logits[tried.judged], labels[tried.judged], "cv")
