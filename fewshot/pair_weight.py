"""The weight of a pair's first backbone, chosen by cross-validation on the few shots."""

from typing import Unpack

from cache.pair import EVEN, Pair
from fewshot.fitting import Fitted, fit, settled
from fewshot.method import Method
from fewshot.model_selection.choosing import Score, best
from fewshot.model_selection.cross_validation import OutOfFold, cross_validate
from fewshot.model_selection.tuning import cv_folds
from fewshot.protocol import HALVES, Asked, Protocol
from fewshot.sampling import halves

WEIGHTS = (0.0, 0.25, EVEN, 0.75, 0.9)


def weighed(
    pair: Pair, method: Method | str, protocol: Protocol | None = None, **asked: Unpack[Asked]
) -> Pair:
    """The pair with the weight of `WEIGHTS` that suits a method and the few shots it is to learn.

    For each weight the method is tuned by the protocol, and judged on the folds of `cv`. `EVEN`
    stays unless another is better by more than chance; see `choosing.best`. It also stays where
    nothing is tuned: without labels, at one shot, or by request. A weight that was set stays too.

    Raises:
        UserError: What `fit` raises.
    """
    if pair.weight is not None:
        return pair
    even = pair.at(EVEN)
    scores: dict[float, Score] = {}
    for weight in WEIGHTS:
        store = pair.at(weight)
        configured, one = settled(store, method, protocol, asked)
        if not one.support_for(configured) or one.tune == "none":
            return even
        base = None
        if one.setting in HALVES:
            base = halves(store.labels("train"), store.n_classes)[0]
        fitted = fit(store, configured, one, classes=base)
        score = _score(fitted, store)
        if score is None:
            return even
        scores[weight] = score
    return pair.at(best(scores, EVEN))


def _score(fitted: Fitted, pair: Pair) -> Score | None:
    """The tuned method on images held out of its support set; None where none can be."""
    support = fitted.support
    if support is None or support.shots < 2:
        return None
    *_, found = cross_validate(
        fitted.method, lambda _: support, lambda _: fitted.text, cv_folds(support),
        tune=False, logit_scale=pair.logit_scale, share=fitted.run.blend,
    )  # fmt: skip
    if not isinstance(found, OutOfFold):
        return None
    score = Score()
    score.add(found.logits[found.judged], support.labels[found.judged])
    return score
