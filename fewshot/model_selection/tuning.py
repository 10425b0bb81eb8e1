"""Choose hyper-parameters without the test split, by one of the four protocols of `protocols`."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from cache.errors import UserError, unknown
from cache.progress import Advance, progress
from fewshot.abilities import Held, TunesItself
from fewshot.classifier import Classifier
from fewshot.method import AnyMethod, Grid, Method, variants
from fewshot.model_selection.blending import Blend, blend_of
from fewshot.model_selection.choosing import VariantScore, best, continued
from fewshot.model_selection.folds import folds, held_out
from fewshot.model_selection.protocols import PROTOCOLS, Share
from fewshot.settings import configure
from fewshot.support import SupportSet, spread
from fewshot.text import Text
from fewshot.threads import few_threads

MAX_FOLDS = 4
ENOUGH = 4000  # held-out images: by then a standard error of accuracy is 0.8 % at most
PATIENCE = 2.0  # seconds of tuning before its progress is shown
LOGITS = 2**25  # of one variant at a time, 128 MiB; beyond, the queries come in blocks


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


@overload
def tune(
    method: AnyMethod,
    support: SupportSet,
    text: Text | None,
    *,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None = ...,
    grid: Grid | None = ...,
    fold: Tensor | None = ...,
    blend: Blend | None = ...,
) -> AnyMethod: ...
@overload
def tune(
    method: str,
    support: SupportSet,
    text: Text | None,
    *,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None = ...,
    grid: Grid | None = ...,
    fold: Tensor | None = ...,
    blend: Blend | None = ...,
) -> Method: ...
def tune(
    method: Method | str,
    support: SupportSet,
    text: Text | None,
    *,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None = None,
    grid: Grid | None = None,
    fold: Tensor | None = None,
    blend: Blend | None = None,
) -> Method:
    """Keep the method as it is, or choose the variant that beats it on held-out images.

    By `cv` a held-out image is classified from its center crop, as a query is, and its views train
    nothing. Of a large support set no more than `ENOUGH` images are held out, which the first folds
    may give.

    A method that tunes itself does so. Else the rule is `choosing.best`, and a choice at an end of
    the grid continues beyond it, by `choosing.continued`.

    Args:
        method: A candidate, and the one to beat, or the name of a method with its defaults. Fields
            that the grid does not name stay as they are.
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
        UserError: No such method or protocol, no validation images for one that needs them, or `cv`
            at one shot without folds.
    """
    if isinstance(method, str):
        method = configure(method)
    grid = method.grid if grid is None else grid
    if protocol not in PROTOCOLS:
        raise unknown("tuning protocol", protocol, PROTOCOLS)
    if protocol == "none" or not grid:
        return method
    parts = _judged_parts(support, protocol, validation, fold)
    if not parts:
        return method
    if isinstance(method, TunesItself):
        with progress("tuning", len(parts), patience=PATIENCE) as advance:
            return method.tuned(grid, support, text, _counted(parts, advance))

    block = max(1, LOGITS // support.n_classes)

    def judged(grid: Grid) -> dict[Method, VariantScore]:
        scores = {variant: VariantScore() for variant in variants(method, grid)}
        blocks = [
            (train, x, y)
            for train, features, labels in parts
            for x, y in zip(torch.split(features, block), torch.split(labels, block), strict=True)
        ]
        with progress("tuning", len(blocks) * len(scores), patience=PATIENCE) as advance:
            for train, x, y in blocks:
                blended = None if blend is None else blend.on(x)
                for variant, logits in method.sweep(grid, train, text, x):
                    scores[variant].add(logits if blended is None else blended(logits), y)
                    advance(1)
        return scores

    tried = {name: _with_own(values, getattr(method, name)) for name, values in grid.items()}
    scores = judged(tried)
    chosen = best(scores, method)
    return chosen if chosen == method else continued(grid, chosen, scores[chosen], judged)


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
    with few_threads(support):
        method = tune(
            method, support, text,
            protocol=protocol, validation=validation, grid=grid, fold=fold, blend=blend,
        )  # fmt: skip
        classifier = method.fit(support, text)
    return method, classifier if blend is None else blend.classifier(classifier)


def _counted(parts: Sequence[Held], advance: Advance) -> Iterator[Held]:
    """The parts, each counted when the next is asked for."""
    for part in parts:
        yield part
        advance(1)


def _with_own(values: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """The candidates of a field, and its own value if it is not among them."""
    return values if own in values else (*values, own)


def _judged_parts(
    support: SupportSet,
    protocol: str,
    validation: tuple[Tensor, Tensor] | None,
    fold: Tensor | None,
) -> list[tuple[SupportSet, Tensor, Tensor]]:
    """Pairs of what to train on and what to judge by: features (M, D) and labels (M,)."""
    if protocol != "cv":
        if validation is None:
            raise UserError(f"tuning by {protocol} needs validation images; there are none; use cv")
        return [(support, *validation)]
    parts, left = [], ENOUGH
    for train, rows in held_out(support, cv_folds(support) if fold is None else fold):
        rows = rows[spread(len(rows), left)]
        parts.append((train, support.features[rows], support.labels[rows]))
        left -= len(rows)
        if not left:
            break
    return parts
