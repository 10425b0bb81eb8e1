"""Choosing hyper-parameters without the test split, by one of four protocols.

    none      the method's own defaults; nothing is chosen
    cv        stratified folds over the support set itself: no other label is used
    val       few-shot validation images, min(K, 4) of each class, as CoOp has them
    full-val  the whole validation split, as Tip-Adapter's and GDA's papers have it

The first two cost no labels but the support set's; the last uses many times more labels than
the few shots it tunes for, which is why a result names its protocol.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.errors import UserError, unknown
from fewshot.classifier import AnyMethod, Grid, Sweeper, variants
from fewshot.support import SupportSet
from fewshot.text import Text

PROTOCOLS = ("none", "cv", "val", "full-val")
MAX_FOLDS = 4
ENOUGH = 4000  # held-out images: by then a standard error of accuracy is 0.8 % at most


@dataclass
class Score:
    """How the variants' logits fared on labeled images, summed over them."""

    correct: int = 0
    loss: float = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count (M, C) logits of images with (M,) labels."""
        self.correct += int((logits.argmax(dim=1) == labels).sum())
        self.loss += float(cross_entropy(logits, labels, reduction="sum"))


def default_protocol(shots: int) -> str:
    """`cv` from two shots on: one to learn from and one to judge by."""
    return "cv" if shots >= 2 else "none"


def tune(
    method: AnyMethod,
    support: SupportSet,
    text: Text | None,
    *,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None = None,
    grid: Grid | None = None,
) -> AnyMethod:
    """The variant of the method that does best on held-out images, by `best`.

    Args:
        method: Where the grid says nothing, its fields stand.
        support: The support set.
        text: The classes' text or None.
        protocol: One of `PROTOCOLS`.
        validation: Features (M, D) and labels (M,) of the validation images, for `val` and
            `full-val`; which images those are is the caller's choice.
        grid: Candidates; the method's own without it.

    Raises:
        UserError: No such protocol, no validation images for one that needs them, or `cv` at one
            shot.
    """
    grid = method.grid if grid is None else grid
    if protocol not in PROTOCOLS:
        raise unknown("tuning protocol", protocol, PROTOCOLS)
    if protocol == "none" or not grid:
        return method
    scores: dict[AnyMethod, Score] = {}
    if protocol == "cv":
        held_out = cross_validation(support)
    elif validation is None:
        raise UserError(f"tuning by {protocol} needs validation images; there are none; use cv")
    else:
        held_out = iter([(support, *validation)])
    n_images = 0
    for train, features, labels in held_out:
        n_images += len(labels)
        for variant, logits in sweep(method, grid, train, text, features):
            scores.setdefault(variant, Score()).add(logits, labels)
    return best(scores, n_images)


def sweep(
    method: AnyMethod, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
) -> Iterator[tuple[AnyMethod, Tensor]]:
    """Each variant of the grid with its (M, C) logits of the (M, D) query.

    By the method's own `sweep` where it has one, else by fitting each variant anew.
    """
    if isinstance(method, Sweeper):
        yield from method.sweep(grid, support, text, query)
        return
    for variant in variants(method, grid):
        yield variant, variant.fit(support, text).logits(query)


def best(scores: dict[AnyMethod, Score], n_images: int) -> AnyMethod:
    """Of the variants within one standard error of the best accuracy, that of least log-loss.

    Accuracy is what counts, yet on a few hundred images much of what tells variants apart by it
    is chance; log-loss is far steadier, but minds how sure a variant is and not only whether it
    is right. So accuracy decides as far as it can, and log-loss the rest; the fewer the images,
    the more. Equal ones: the first.

    Args:
        scores: By variant, in the grid's order.
        n_images: How many images each score sums over.
    """
    top = max(score.correct for score in scores.values()) / n_images
    error = math.sqrt(top * (1 - top) / n_images)
    close = [m for m, score in scores.items() if score.correct / n_images >= top - error]
    return min(close, key=lambda m: _finite(scores[m].loss))


def cross_validation(support: SupportSet) -> Iterator[tuple[SupportSet, Tensor, Tensor]]:
    """Folds (train, held-out features (M, D), held-out labels (M,)), M summing to N.

    Each class is dealt out in turn, to as many folds as the smallest class has images but at
    most four: so every class trains every fold, and below five shots a fold leaves out one shot.
    An image takes all its views along; held-out images are judged by their center crop, as
    queries are. Of a large support set the last folds are not used, once `ENOUGH` were judged.

    Raises:
        UserError: A class has one image.
    """
    if support.shots < 2:
        raise UserError(
            "tuning by cv needs two images of every class, one to learn from and one to judge by; "
            "got 1; with one shot use none, the default there, or val"
        )
    order = torch.argsort(support.labels, stable=True)
    first = support.counts.cumsum(0) - support.counts  # where each class begins in that order
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(order), device=order.device) - first[support.labels[order]]
    fold = turn % min(support.shots, MAX_FOLDS)
    judged = 0
    for k in range(int(fold.max()) + 1):
        if judged >= ENOUGH:
            break
        held = fold == k
        judged += int(held.sum())
        yield support.subset(~held), support.features[held], support.labels[held]


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
