"""Out-of-fold logits of a method, tuned anew within every training part.

So the accuracy counts what tuning costs: no image is judged by a classifier, or by settings, that
it had a part in choosing (nested cross-validation: Varma and Simon, "Bias in error estimation when
using cross-validation for model selection", 2006, https://doi.org/10.1186/1471-2105-7-91).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from cache.errors import UserError
from fewshot.classifier import AnyMethod, Method
from fewshot.model_selection.folds import folds, held_out
from fewshot.model_selection.tuning import ENOUGH, MAX_FOLDS, Score, best, sweep
from fewshot.support import SupportSet
from fewshot.text import Text

SupportOf = Callable[[Method], SupportSet]
TextFor = Callable[[Method], Text | None]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """A method's logits of images that it was not fitted to.

    Attributes:
        name: The method's.
        settings: For each fold, the hyper-parameters that were tuned.
        judged: (N,) bool, whether an image was held out.
        correct: (N,) bool, whether it was then classified as labeled; False of one not judged.
        logits: (N, C) float32; NaN of images not judged.
        seconds: All of it took.
    """

    name: str
    settings: tuple[Mapping[str, Any], ...]
    judged: Tensor
    correct: Tensor
    logits: Tensor
    seconds: float

    def probabilities(self, temperature: float) -> Tensor:
        """(N, C) softmax(logits / T); NaN of images not judged."""
        return torch.softmax(self.logits / temperature, dim=1)


@dataclass(frozen=True)
class Failed:
    """A method that could not be tried.

    Attributes:
        name: The method's.
        why: One sentence.
        seconds: Until it failed.
    """

    name: str
    why: str
    seconds: float


def cross_validate(
    method: Method,
    support_of: SupportOf,
    text_for: TextFor,
    fold: Tensor,
    *,
    groups: Tensor | None = None,
    tune: bool = True,
) -> OutOfFold | Failed:
    """Each image's logits by the method, tuned and fitted on the folds that it is not in.

    Args:
        method: With the settings that tuning starts from.
        support_of: All labeled images in the form that a method wants: unit norm or not.
        text_for: The classes' text by a method's recipe.
        fold: (N,) by `folds`.
        groups: (N,) near-duplicates, which tuning keeps together too.
        tune: Whether to tune, or to take the method as it is.

    Returns:
        The logits; or, where the method cannot be fitted to these images, why.
    """
    start = time.perf_counter()
    try:
        support, text = support_of(method), text_for(method)
        logits = torch.full((len(fold), support.n_classes), torch.nan)
        settings = []
        for train, rows in held_out(support, fold):
            chosen = method
            if tune:
                within = None if groups is None else groups[fold != fold[rows[0]]]
                chosen = tune_unbalanced(method, train, text, groups=within)
            found = chosen.fit(train, text).logits(support.features[rows])
            if not torch.isfinite(found).all():
                raise UserError(f"{method.name} gave logits that are no numbers; leave it out")
            logits[rows] = found
            settings.append({name: getattr(chosen, name) for name in method.grid})
    except (UserError, LinAlgError) as error:
        return Failed(method.name, str(error), time.perf_counter() - start)
    judged = fold >= 0
    correct = judged & (logits.argmax(dim=1) == support.labels)
    seconds = time.perf_counter() - start
    return OutOfFold(method.name, tuple(settings), judged, correct, logits, seconds)


def tune_unbalanced(
    method: AnyMethod,
    support: SupportSet,
    text: Text | None,
    *,
    groups: Tensor | None = None,
    seed: int = 1,
) -> AnyMethod:
    """The variant of the method's grid that does best on held-out images, by `tuning.best`.

    As `tuning.tune` by cv, for support sets that it refuses: a class of one image trains in every
    fold and is not judged. Where no image can be held out the method is returned as it is.

    Args:
        method: Where the grid says nothing, its fields stand.
        support: The support set.
        text: The classes' text or None.
        groups: (N,) near-duplicates, which stay together.
        seed: Of the folds.
    """
    if not method.grid:
        return method
    fold = folds(support.labels, groups=groups, n_folds=MAX_FOLDS, seed=seed)
    scores: dict[AnyMethod, Score] = {}
    judged = 0
    for train, rows in held_out(support, fold):
        if judged >= ENOUGH:
            break
        judged += len(rows)
        for variant, logits in sweep(method, method.grid, train, text, support.features[rows]):
            scores.setdefault(variant, Score()).add(logits, support.labels[rows])
    return best(scores, judged) if judged else method
