"""Out-of-fold logits of a method that is tuned within every training part.

No image is judged by a classifier or by hyper-parameters that it helped to choose, so the accuracy
includes the cost of tuning (nested cross-validation: Varma and Simon, "Bias in error estimation
when using cross-validation for model selection", 2006, https://doi.org/10.1186/1471-2105-7-91).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stubs lack it

from cache.errors import UserError
from fewshot.method import Method
from fewshot.model_selection import tuning
from fewshot.model_selection.folds import folds, held_out
from fewshot.model_selection.protocols import Share
from fewshot.support import SupportSet
from fewshot.text import Text

SupportOf = Callable[[Method], SupportSet]
TextFor = Callable[[Method], Text | None]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """A method's classification of images that it had not learned from.

    Attributes:
        name: Name of the method.
        settings: For each fold, the hyper-parameters that were tuned.
        judged: (N,) bool, true for images that were held out, so far.
        correct: (N,) bool, true for held-out images that were classified as labeled.
        logits: (N, C) float32; NaN for images that were not held out.
        seconds: Tuning, fitting and classifying, in all these folds.
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

    @property
    def accuracy(self) -> float:
        """Top-1 on the images that were held out."""
        return int(self.correct.sum()) / max(1, int(self.judged.sum()))


@dataclass(frozen=True)
class Failed:
    """A method that could not be cross-validated.

    Attributes:
        name: Name of the method.
        why: One sentence.
        seconds: Time until it failed.
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
    logit_scale: float = 100.0,
    share: Share = "auto",
) -> Iterator[OutOfFold | Failed]:
    """Classify each fold by the method, tuned and fitted on the others; yield all so far.

    Args:
        method: Has the hyper-parameters that tuning starts from.
        support_of: Gives all labeled images in the form that a method needs: unit norm or not.
        text_for: Gives the classes' text by a method's recipe.
        fold: (N,) by `folds`.
        groups: (N,) near-duplicates, which the folds of tuning keep together too.
        tune: Tune the method, else use it as it is.
        logit_scale: CLIP's inverse temperature.
        share: The method's share of the logits; see `blending.blend_of`.

    Yields:
        The logits so far, in the end of all images that are held out; or, as the last, the reason
        why the method cannot be fitted to these images.
    """
    start = time.perf_counter()
    seconds = 0.0
    try:
        support, text = support_of(method), text_for(method)
        logits = torch.full((len(fold), support.n_classes), torch.nan)
        judged = torch.zeros(len(fold), dtype=torch.bool)
        settings = []
        for train, rows in held_out(support, fold):
            inner = None
            if tune:
                within = None if groups is None else groups[fold != fold[rows[0]]]
                inner = folds(train.labels, groups=within, n_folds=tuning.MAX_FOLDS, seed=1)
            chosen, classifier = tuning.fit_tuned(
                method,
                train,
                text,
                protocol="cv" if tune else "none",
                logit_scale=logit_scale,
                share=share,
                fold=inner,
            )
            found = classifier.logits(support.features[rows])
            if not torch.isfinite(found).all():
                raise UserError(f"{method.name} gave logits that are no numbers; leave it out")
            logits[rows] = found
            settings.append({name: getattr(chosen, name) for name in method.grid})
            judged[rows] = True
            correct = judged & (logits.argmax(dim=1) == support.labels)
            seconds += time.perf_counter() - start
            yield OutOfFold(
                method.name, tuple(settings), judged.clone(), correct, logits.clone(), seconds
            )
            start = time.perf_counter()  # others may have had a turn
    except (UserError, LinAlgError) as error:
        yield Failed(method.name, str(error), seconds + time.perf_counter() - start)
