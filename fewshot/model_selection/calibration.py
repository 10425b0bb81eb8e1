"""Temperature scaling: one temperature for all logits, and the calibration error that remains.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewshot.method import Method
from fewshot.metrics import wilson
from fewshot.model_selection.cross_validation import Failed, cross_validate
from fewshot.model_selection.folds import folds
from fewshot.model_selection.near_duplicates import scenes
from fewshot.model_selection.protocols import Share
from fewshot.support import SupportSet
from fewshot.text import Text

MAX_LOG_T = math.log(1e4)  # the search covers T from 1e-4 to 1e4


@dataclass(frozen=True)
class Calibration:
    """Temperature and accuracy of a classifier on labeled images that it was not fitted to.

    Attributes:
        temperature: T: probabilities are softmax(logits / T).
        images: Number of these images; 0 where there were none, and T is then 1.
        source: Where they came from: `cv` (folds of the support set), `val`, or `none`.
        accuracy: Top-1 on them, 0..1; None without any.
        interval: 95 % interval of it; None without any.
        error: Expected calibration error at this T, 0..1; None without any.
        error_before: The same at T of 1.
    """

    temperature: float = 1.0
    images: int = 0
    source: str = "none"
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    error: float | None = None
    error_before: float | None = None


def calibrate(
    logits: Tensor, labels: Tensor, source: str, *, at: float | None = None
) -> Calibration:
    """Calibrate a classifier on its logits of images it was not fitted to.

    Args:
        logits: (M, C).
        labels: (M,) class ids.
        source: Origin of these images; see `Calibration`.
        at: The temperature; the one of the lowest log-loss without it.
    """
    n = len(labels)
    if not n:
        return Calibration()
    t = temperature(logits, labels) if at is None else at
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


def out_of_fold(
    method: Method,
    support: SupportSet | None,
    text: Text | None,
    *,
    logit_scale: float = 100.0,
    share: Share = "auto",
) -> tuple[Tensor, Tensor] | None:
    """Logits (n, C) and labels (n,) of the images a method learns from, each held out once.

    Each image is classified by the method fitted to the other folds; images of one scene are in
    one fold. The hyper-parameters stay as they are.

    Args:
        method: With its hyper-parameters as tuned on all images.
        support: The support set; None where the method learned from no labels.
        text: The classes' text or None.
        logit_scale: CLIP's inverse temperature.
        share: The method's share of the logits; see `blending.blend_of`.

    Returns:
        None where there is no support set, where the method cannot be fitted to a part of it, or
        where every class has one image.
    """
    if support is None:
        return None
    labels = support.labels
    fold = folds(labels, groups=scenes(support.features, labels), seed=1)
    if not (fold >= 0).any():
        return None
    *_, found = cross_validate(
        method,
        lambda _: support,
        lambda _: text,
        fold,
        tune=False,
        logit_scale=logit_scale,
        share=share,
    )
    if isinstance(found, Failed):
        return None
    return found.logits[found.judged], labels[found.judged]


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the T under which softmax(logits / T) has the lowest log-loss on these images.

    One more image, of a class drawn at random, is added to the loss. Where every prediction is
    right the log-loss alone would send T to 0, and a hundred right predictions prove no certainty.

    Args:
        logits: (M, C) of images that the classifier was not fitted to.
        labels: (M,) class ids.

    Returns:
        T > 0; 1 where there are no images.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    z = logits.double()
    of_label = z.gather(1, labels[:, None])[:, 0].mean()
    average = z.mean()

    def loss(log_t: float) -> float:
        # Mean of log-sum-exp less the logit of the label, that image of a random class included.
        inverse = math.exp(-log_t)
        total = torch.logsumexp(inverse * z, dim=1).mean()
        seen, drawn = total - inverse * of_label, total - inverse * average
        return float(seen + drawn / len(labels))

    found = minimize_scalar(loss, bounds=(-MAX_LOG_T, MAX_LOG_T), method="bounded")
    return math.exp(float(found.x))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, from 0 to 1.

    Args:
        probabilities: (M, C).
        labels: (M,) class ids.
        bins: Number of bins.
    """
    if not len(labels):
        return 0.0
    confidence, predicted = probabilities.double().max(dim=1)
    gap = (predicted == labels).double() - confidence
    at = (confidence * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins).double().index_add_(0, at, gap).abs().sum() / len(labels))


def log_loss(logits: Tensor, labels: Tensor, t: float = 1.0) -> float:
    """Mean -log p of (M,) labels under softmax(logits / T) of (M, C) logits."""
    return float(cross_entropy(logits.double() / t, labels))
