"""Choose hyper-parameters without the test split, by one of four protocols.

    none      the method's own defaults; nothing is chosen
    cv        stratified folds over the support set itself: no other label is used
    val       few-shot validation images, min(K, 4) of each class, as in CoOp
    full-val  the whole validation split, as in the papers of Tip-Adapter and GDA

The first two use no labels but the support set's. The last uses many times more labels than the
few shots it tunes for, so a result names its protocol.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError, unknown
from fewshot.method import AnyMethod, Grid, variants
from fewshot.model_selection.folds import folds, held_out
from fewshot.support import SupportSet
from fewshot.text import Text

PROTOCOLS = ("none", "cv", "val", "full-val")
MAX_FOLDS = 4
ENOUGH = 4000  # held-out images: by then a standard error of accuracy is 0.8 % at most


@dataclass
class Score:
    """Correct predictions and summed log-loss of one variant on labeled images."""

    correct: int = 0
    loss: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add (M, C) logits of images with (M,) labels."""
        self.correct += int((logits.argmax(dim=1) == labels).sum())
        self.loss += float(cross_entropy(logits, labels, reduction="sum"))


def default_protocol(shots: int) -> str:
    """`cv` from two shots on: one to learn from and one to judge by."""
    return "cv" if shots >= 2 else "none"


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
) -> AnyMethod:
    """Choose the variant of the method that does best on held-out images, by `best`.

    By `cv` a held-out image is classified from its center crop, as a query is, and its views train
    nothing. Of a large support set the last folds are not used, once `ENOUGH` images were judged.

    Args:
        method: Fields that the grid does not name stay as they are.
        support: The support set.
        text: The classes' text or None.
        protocol: One of `PROTOCOLS`.
        validation: Features (M, D) and labels (M,) of the validation images, for `val` and
            `full-val`; which images those are is the caller's choice.
        grid: Candidates; the method's own without it.
        fold: (N,) by `folds`, for `cv`: to keep near-duplicates together, or to train on classes
            of one image without judging them. Without it, `cv_folds` of the support set.

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
    scores = {variant: Score() for variant in variants(method, grid)}
    n_images = 0
    for train, features, labels in _judged_parts(support, protocol, validation, fold):
        for variant, logits in method.sweep(grid, train, text, features):
            scores[variant].add(logits, labels)
        n_images += len(labels)
        if n_images >= ENOUGH:
            break
    return best(scores, n_images) if n_images else method


def best(scores: dict[AnyMethod, Score], n_images: int) -> AnyMethod:
    """Of the variants within one standard error of the best accuracy, return the lowest log-loss.

    Accuracy is what counts. Yet on a few hundred images most differences in accuracy are chance,
    and log-loss, which also weighs how sure a variant is, varies far less. So accuracy decides as
    far as it can tell variants apart, and log-loss the rest. Of equal variants the first is chosen.

    Args:
        scores: By variant, in the grid's order.
        n_images: How many images each score sums over.
    """
    top = max(score.correct for score in scores.values()) / n_images
    error = math.sqrt(top * (1 - top) / n_images)
    close = [m for m, score in scores.items() if score.correct / n_images >= top - error]
    return min(close, key=lambda m: _finite(scores[m].loss))


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


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
