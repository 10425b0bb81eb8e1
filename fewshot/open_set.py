"""Open set: images of some classes are known, those of the others unknown, and nobody says which.

A classifier of the known classes gives every image a score, the higher the likelier it is known.
The area under the ROC curve and the false positive rate judge the scores at all thresholds, so no
threshold is chosen on test images. The scores: mcm, https://arxiv.org/abs/2211.13445; max-softmax,
https://arxiv.org/abs/1610.02136; max-logit, https://arxiv.org/abs/1911.11132; energy,
https://arxiv.org/abs/2010.03759.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import numpy as np
from annotated_types import Len
from numpy.typing import ArrayLike, NDArray

from cache.datasets.manifest import published_known
from cache.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from fewshot.classifier import Classifier

Known = int | Annotated[tuple[str, ...], Len(min_length=2)]
Score = Literal["mcm", "max-softmax", "max-logit", "energy"]
SCORES: tuple[Score, ...] = get_args(Score)


def parse_known(text: str, *datasets: str) -> Known:
    """The known classes as typed: how many of the first ones, or names with commas between.

    `published` is the number of the datasets' classes that are known in published open sets.

    Raises:
        UserError: None is published of one of the datasets, or not the same number of all.
    """
    if text.strip().isdecimal():
        return int(text)
    if text.strip() == "published":
        if not datasets:
            raise UserError("--known published goes by the dataset; name the datasets as well")
        numbers = {dataset: published_known(dataset) for dataset in datasets}
        if len(set(numbers.values())) > 1:
            listed = ", ".join(f"{number} of {dataset}" for dataset, number in numbers.items())
            raise UserError(
                f"published open sets have different numbers of known classes: {listed}; give "
                "datasets with one number at a time"
            )
        return numbers[datasets[0]]
    return tuple(word.strip() for word in text.split(",") if word.strip())


def checked_known(known: int | Sequence[str]) -> Known:
    """The known classes, as a number, or as names in alphabetical order.

    Raises:
        UserError: Fewer than two, or one twice.
    """
    if isinstance(known, int):
        if known < 2:
            raise UserError(f"two known classes are needed to tell apart; got {known}; name more")
        return known
    if isinstance(known, str) or not all(isinstance(name, str) for name in known):
        raise UserError(f"known must be a number of classes or a list of names; got {known!r:.60}")
    names = tuple(sorted(known))
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UserError(f"{twice[0]} is among the known classes twice; name each once")
    if len(names) < 2:
        raise UserError(f"two known classes are needed to tell apart; got {len(names)}; name more")
    return names


def known_classes(classnames: Sequence[str], known: Known) -> tuple[int, ...]:
    """The ids of the known classes, in order; the others are unknown.

    Args:
        classnames: C names by class id.
        known: How many of the first classes, or names.

    Raises:
        UserError: A name that is no class, or of two classes; or no class is left to be unknown.
    """
    names = list(classnames)
    if isinstance(known, int):
        ids = list(range(min(known, len(names))))
    else:
        for name in known:
            if name not in names:
                raise unknown("class", name, names)
            if names.count(name) > 1:
                raise UserError(
                    f"{name} is the name of two classes, so it could be known and unknown; give "
                    "the number of known classes instead"
                )
        ids = sorted(map(names.index, known))
    here, there = ({names[k] for k in side} for side in (ids, set(range(len(names))) - set(ids)))
    if not there:
        raise UserError(
            f"no class of {len(names)} is left to be unknown, and one is needed; name fewer"
        )
    if here & there:
        raise UserError(
            f"{min(here & there)} is the name of a known and of an unknown class; rename one"
        )
    return tuple(ids)


def knownness(logits: "Tensor", score: Score, logit_scale: float) -> "Tensor":
    """(M,) scores of (M, C) logits in double precision: the higher, the likelier a known class.

    Args:
        logits: Of the known classes.
        score: `max-softmax`, the probability of the likeliest class; `mcm`, maximum concept
            matching, the same of the logits without their scale; `max-logit`, the highest logit;
            or `energy`, the logarithm of the sum of all exponentials.
        logit_scale: CLIP's inverse temperature, for `mcm` alone.
    """
    z = logits.double()
    if score == "energy":
        return z.logsumexp(dim=1)
    if score == "max-logit":
        return z.amax(dim=1)
    return (z / logit_scale if score == "mcm" else z).softmax(dim=1).amax(dim=1)


def certainty(logits: "Tensor") -> "Tensor":
    """(M,) 1 - H(softmax) / log C of (M, C) logits: 0 where all classes are alike, 1 at one."""
    p = logits.softmax(dim=1)
    return 1 + (p * p.clamp_min(1e-30).log()).sum(dim=1) / math.log(logits.shape[1])


def classify_and_score(
    classifier: "Classifier", features: "Tensor", score: Score, logit_scale: float, block: int
) -> tuple["Tensor", NDArray[np.float64]]:
    """(M,) predicted classes and (M,) scores of (M, D) features, a block of them at a time."""
    import torch

    blocks = [classifier.logits(part) for part in torch.split(features, block)]
    scores = torch.cat([knownness(logits, score, logit_scale) for logits in blocks])
    return torch.cat([logits.argmax(dim=1) for logits in blocks]), scores.numpy()


def known_among(labels: ArrayLike, known: ArrayLike, where: object) -> NDArray[np.bool_]:
    """(M,) which of the images with these labels are of known classes.

    Raises:
        UserError: All are, or none; says where.
    """
    ours: NDArray[np.bool_] = np.isin(labels, known)
    if ours.all() or not ours.any():
        kind = "unknown" if ours.all() else "known"
        raise UserError(f"{where} has no test image of {kind} classes; name other classes")
    return ours


def separated(
    right: float, scores: NDArray[np.float64], ours: NDArray[np.bool_]
) -> dict[str, float]:
    """The figures of an open set, by the names that results have for them.

    Args:
        right: Accuracy on known images.
        scores: (M,) the higher, the likelier known.
        ours: (M,) which images are.
    """
    known, others = scores[ours], scores[~ours]
    return {"known": right, "auroc": auroc(known, others), "fpr95": fpr_at_95(known, others)}


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Area under the ROC curve: how often a known image's score is above an unknown one's.

    Ties count half. All pairs are counted, by sorting.
    """
    high, low = np.asarray(known, np.float64), np.sort(np.asarray(unknown, np.float64))
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * len(low)))


def fpr_at_95(known: ArrayLike, unknown: ArrayLike) -> float:
    """Share of the unknown images that pass where 95 % of the known ones do."""
    high = np.sort(np.asarray(known, np.float64))[::-1]
    threshold = high[int(np.ceil(0.95 * len(high))) - 1]
    return float((np.asarray(unknown, np.float64) >= threshold).mean())
