"""Choose hyper-parameters without the test split, by one of the four protocols of `protocols`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError, unknown
from fewshot.classifier import Classifier
from fewshot.method import AnyMethod, Grid, variants
from fewshot.model_selection.blending import Blend, blend_of
from fewshot.model_selection.folds import folds, held_out
from fewshot.model_selection.protocols import PROTOCOLS, Share
from fewshot.support import SupportSet
from fewshot.text import Text

MAX_FOLDS = 4
ENOUGH = 4000  # held-out images: by then a standard error of accuracy is 0.8 % at most


@dataclass
class Score:
    """How one variant did on labeled images.

    Attributes:
        correct: (M,) bool, true for each image that it classified as labeled.
        loss: Summed log-loss.
    """

    correct: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    loss: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add (M, C) logits of further images with (M,) labels."""
        self.correct = torch.cat([self.correct, (logits.argmax(dim=1) == labels).cpu()])
        self.loss += float(cross_entropy(logits, labels, reduction="sum"))

    @property
    def rank(self) -> tuple[int, float]:
        """Its place among variants: more correct predictions, and of equals a lower log-loss."""
        return int(self.correct.sum()), -self.loss if math.isfinite(self.loss) else -math.inf


def cv_folds(support: SupportSet) -> Tensor:
    """(N,) fold of each image, by `folds`: as many as the smallest class has images, at most four.

    So every class trains every fold, and below five shots a fold leaves out one shot.

    Raises:
        UserError: A class has one image.
    """
    if support.shots < 2:
        raise UserError(
            "tuning by cv needs two images of every class, one to learn from and one to judge by; "
            "got 1; with one shot use none, the default there, or val"
        )
    return folds(support.labels, n_folds=min(support.shots, MAX_FOLDS))


def tune(
    method: AnyMethod,
    support: SupportSet,
    text: Text | None,
    *,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None = None,
    grid: Grid | None = None,
    fold: Tensor | None = None,
    blend: Blend | None = None,
) -> AnyMethod:
    """Keep the method as it is, or choose the variant that beats it on held-out images, by `best`.

    By `cv` a held-out image is classified from its center crop, as a query is, and its views train
    nothing. Of a large support set the last folds are not used, once `ENOUGH` images were judged.

    Args:
        method: A candidate, and the one to beat. Fields that the grid does not name stay as they
            are.
        support: The support set.
        text: The classes' text or None.
        protocol: One of `PROTOCOLS`.
        validation: Features (M, D) and labels (M,) of the validation images, for `val` and
            `full-val`; which images those are is the caller's choice.
        grid: Candidates; the method's own without it.
        fold: (N,) by `folds`, for `cv`: to keep near-duplicates together, or to train on classes
            of one image without judging them. Without it, `cv_folds` of the support set.
        blend: Judge every variant blended with zero-shot.

    Returns:
        The variant; the method itself where the protocol is `none`, the grid is empty or no image
        can be held out.

    Raises:
        UserError: No such protocol, no validation images for one that needs them, or `cv` at one
            shot without folds.
    """
    grid = method.grid if grid is None else grid
    if protocol not in PROTOCOLS:
        raise unknown("tuning protocol", protocol, PROTOCOLS)
    if protocol == "none" or not grid:
        return method
    grid = {name: _with_own(values, getattr(method, name)) for name, values in grid.items()}
    scores = {variant: Score() for variant in variants(method, grid)}
    n_images = 0
    for train, features, labels in _judged_parts(support, protocol, validation, fold):
        for variant, logits in method.sweep(grid, train, text, features):
            blended = logits if blend is None else blend.logits(features, logits)
            scores[variant].add(blended, labels)
        n_images += len(labels)
        if n_images >= ENOUGH:
            break
    return best(scores, method) if n_images else method


def fit_tuned(
    method: AnyMethod,
    support: SupportSet,
    text: Text | None,
    *,
    protocol: str,
    logit_scale: float,
    share: Share = "auto",
    validation: tuple[Tensor, Tensor] | None = None,
    grid: Grid | None = None,
    fold: Tensor | None = None,
) -> tuple[AnyMethod, Classifier]:
    """Tune the method, fit it, and blend it with zero-shot; return it and the classifier.

    Args:
        method: As in `tune`, as are all but the next two.
        support: The support set.
        text: The classes' text or None.
        protocol: The tuning protocol.
        logit_scale: CLIP's inverse temperature.
        share: The method's share of the logits; see `blending.blend_of`.
        validation: The validation images.
        grid: Candidates.
        fold: The folds.

    Raises:
        UserError: What `tune`, `Method.fit` and `blend_of` raise.
    """
    blend = blend_of(method, support, text, logit_scale=logit_scale, share=share)
    method = tune(
        method, support, text,
        protocol=protocol, validation=validation, grid=grid, fold=fold, blend=blend,
    )  # fmt: skip
    classifier = method.fit(support, text)
    return method, classifier if blend is None else blend.classifier(classifier)


def best(scores: Mapping[AnyMethod, Score], own: AnyMethod) -> AnyMethod:
    """Return the most accurate variant if it beats the method's own settings by more than chance.

    All variants classify the same images, so what counts is the images on which two disagree. Of n
    such images, chance alone gives either side a lead of sqrt(n), one standard error (McNemar,
    Psychometrika 12, 1947). A smaller lead changes nothing: the defaults were chosen on far more
    images than a few shots.

    Accuracy in % lost against the best setting of the grid on UCF101's validation split, by cv on
    2, 4, 8 and 16 shots of three draws, on average and at most (`benchmarks/tuning_rule.py`):

                       this rule     most accurate    within one error of it,
                                                      then the lowest log-loss
        gda            0.77  1.2     0.73  1.4        0.93  1.2
        proker         0.25  0.6     0.58  0.9        0.46  1.0
        ridge          0.62  1.6     0.90  1.6        1.66  4.8
        tip-adapter    1.17  2.0     1.05  1.8        1.69  2.7

    On eleven tasks of five datasets, with wider grids and the image term of the defaults weighed as
    `blending` does, the averages over these methods were 0.68, 0.90 and 1.04.

    Args:
        scores: By variant, in the grid's order. Of equal ones the first counts.
        own: The method with its own settings, one of the variants.
    """
    most = max(scores, key=lambda variant: scores[variant].rank)
    a, b = scores[most].correct, scores[own].correct
    lead, disagreements = int(a.sum()) - int(b.sum()), int((a != b).sum())
    return most if lead > math.sqrt(disagreements) else own


def _with_own(values: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """The candidates of a field, and its own value if it is not among them."""
    return values if own in values else (*values, own)


def _judged_parts(
    support: SupportSet,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None,
    fold: Tensor | None,
) -> Iterator[tuple[SupportSet, Tensor, Tensor]]:
    """Pairs of what to train on and what to judge by: features (M, D) and labels (M,)."""
    if protocol == "cv":
        fold = cv_folds(support) if fold is None else fold
        for train, rows in held_out(support, fold):
            yield train, support.features[rows], support.labels[rows]
    elif validation is None:
        raise UserError(f"tuning by {protocol} needs validation images; there are none; use cv")
    else:
        yield support, *validation
