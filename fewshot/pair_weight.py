"""The weight of a pair's first backbone, chosen by cross-validation on the few shots."""

from collections.abc import Callable

from cache.pair import EVEN, Pair
from fewshot.fitted import Fitted
from fewshot.model_selection.choosing import VariantScore, best
from fewshot.model_selection.cross_validation import OutOfFold, cross_validate
from fewshot.model_selection.tuning import cv_folds

WEIGHTS = (0.0, 0.25, EVEN, 0.75, 0.9)


def weighed(pair: Pair, fit_at: Callable[[Pair], Fitted]) -> Pair:
    """The pair with the weight of `WEIGHTS` that suits a method and the few shots it is to learn.

    At each weight the method is tuned and fitted, and judged on the folds of `cv`. `EVEN` stays
    unless another is better by more than chance; see `choosing.best`. It also stays where nothing
    can be held out: without labels, and at one shot. A weight that was set stays too.

    Args:
        pair: Two stores of the same images.
        fit_at: Fits the method to the few shots at a weight.
    """
    if pair.weight is not None:
        return pair
    scores: dict[float, VariantScore] = {}
    for weight in (EVEN, *(one for one in WEIGHTS if one != EVEN)):
        score = _score(fit_at(pair.at(weight)))
        if score is None:
            return pair.at(EVEN)
        scores[weight] = score
    return pair.at(best({weight: scores[weight] for weight in WEIGHTS}, EVEN))


def _score(fitted: Fitted) -> VariantScore | None:
    """The tuned method on images held out of its support set; None where none can be."""
    support = fitted.support
    if support is None or support.shots < 2:
        return None
    *_, found = cross_validate(
        fitted.method, lambda _: support, lambda _: fitted.text, cv_folds(support),
        tune=False, logit_scale=fitted.store.logit_scale, share=fitted.run.blend,
    )  # fmt: skip
    if not isinstance(found, OutOfFold):
        return None
    score = VariantScore()
    score.add(found.logits[found.judged], support.labels[found.judged])
    return score
