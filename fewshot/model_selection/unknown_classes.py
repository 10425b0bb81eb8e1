"""An open-set score, chosen and judged on classes that are hidden from it.

In each turn some classes play the unknown ones. The scores learn from a part of the other classes'
images; those held out are set against all images of the hidden classes. Only labeled images are
used.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stubs lack it
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot.model_selection.calibration import temperature
from fewshot.model_selection.conformal import REFUSED, needed
from fewshot.model_selection.folds import folds, held_out, turns
from fewshot.model_selection.near_duplicates import scenes
from fewshot.model_selection.open_set_scores import (
    SCORES,
    OpenSetScore,
    fit_score,
    gaussian_classes,
)
from fewshot.open_set import auroc, fpr_at_95
from fewshot.support import SupportSet
from fewshot.text import Text

MINIMUM_CLASSES = 3  # one to hide, and two to be known
TURNS = 5
# The scores of held-out images set the threshold, so what they are held out from should be nearly
# all there is: of a fifth less, a score has another scale.
FOLDS = 20
# Held-out images from which on a threshold keeps about 95 %. Of 24, on WHU-RS19, it kept over 99 %,
# and refused 10 to 14 % of unknown images where 33 to 63 % would have been at 95 %.
EXACT = 100
IMAGES = 5000  # about as many are used: a score chosen on more is no other
LOGITS = 2**26  # that the temperature is found on: half a GiB in double precision


@dataclass(frozen=True, eq=False)
class OpenSet:
    """An open-set score, and how well it separates unknown classes from known ones.

    Attributes:
        name: The score's name.
        score: The score, fitted to all labeled images.
        held_out: Scores of known images that were held out, in ascending order.
        auroc: Area under the ROC curve, the mean over turns. In each turn the score is the one that
            is best in the other turns, so the luck of choosing is no part of it.
        range: The lowest and the highest AUROC of a turn.
        refused: Share of unknown images refused where 95 % of known ones are kept, likewise.
        compared: Score -> its mean AUROC over all turns; the highest was chosen.
    """

    name: str
    score: OpenSetScore
    held_out: tuple[float, ...]
    auroc: float
    range: tuple[float, float]
    refused: float
    compared: Mapping[str, float]

    @property
    def enough(self) -> bool:
        """True if `refused` is what the threshold does; of few held-out images it refuses less."""
        return len(self.held_out) >= EXACT


def find_open_set(
    support: SupportSet | None, text: Text | None, *, logit_scale: float = 100.0, seed: int = 1
) -> OpenSet | None:
    """Choose an open-set score by hidden classes.

    Args:
        support: All labeled images; None where the method learned from none.
        text: The classes' text, one feature of unit norm for each, or None.
        logit_scale: CLIP's inverse temperature.
        seed: Random seed for folds, and for which classes are hidden together.

    Returns:
        The score; None where there are fewer than `MINIMUM_CLASSES` classes, or fewer held-out
        images than it takes to keep 95 % of them, or the images have features that are all alike.
    """
    if support is None or support.n_classes < MINIMUM_CLASSES:
        return None
    rows = turns(support.labels, seed) < max(2, -(-IMAGES // support.n_classes))
    features, labels = normalize(support.joint[rows], dim=1), support.labels[rows]
    fold = folds(labels, groups=scenes(features, labels), n_folds=FOLDS, seed=seed)
    if int((fold >= 0).sum()) < needed(1 - REFUSED):
        return None
    support = SupportSet(features, labels, support.n_classes)
    try:
        return _chosen(support, text, fold, logit_scale, seed)
    except (UserError, LinAlgError):
        return None


def _chosen(
    support: SupportSet, text: Text | None, fold: Tensor, logit_scale: float, seed: int
) -> OpenSet | None:
    fits = [
        (train, rows, gaussian_classes(train, text, logit_scale))
        for train, rows in held_out(support, fold)
    ]
    images = -(-len(support.labels) // len(fits))
    some = fits[: max(1, LOGITS // (images * support.n_classes))]
    logits = torch.cat([classifier.logits(support.features[rows]) for _, rows, classifier in some])
    t = temperature(logits, support.labels[torch.cat([rows for _, rows, _ in some])])
    hidden = _hidden(support.n_classes, seed)
    part = torch.where(fold >= 0, fold % len(hidden), -1)
    found = [
        turn
        for k, classes in enumerate(hidden)
        if (turn := _turn(support, text, classes, part == k, logit_scale, t))
    ]
    if len(found) < 2:
        return None
    aurocs, refused = np.array(found).transpose(1, 0, 2)
    means = aurocs.mean(axis=0)
    name = SCORES[int(means.argmax())]
    elsewhere = (np.arange(len(aurocs)), best_elsewhere(aurocs))
    known = [
        fit_score(name, train, classifier, t).score(support.features[rows])
        for train, rows, classifier in fits
    ]
    return OpenSet(
        name=name,
        score=fit_score(name, support, gaussian_classes(support, text, logit_scale), t),
        held_out=tuple(torch.cat(known).sort().values.tolist()),
        auroc=float(aurocs[elsewhere].mean()),
        range=(float(aurocs[elsewhere].min()), float(aurocs[elsewhere].max())),
        refused=float(refused[elsewhere].mean()),
        compared=dict(zip(SCORES, means.tolist(), strict=True)),
    )


def _hidden(n_classes: int, seed: int) -> list[Tensor]:
    """The ids of the classes that are hidden in each turn: every class once."""
    order = torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed))
    return list(order.chunk(min(TURNS, n_classes)))


def _turn(
    support: SupportSet,
    text: Text | None,
    hidden: Tensor,
    held: Tensor,
    logit_scale: float,
    temperature: float,
) -> tuple[list[float], list[float]] | None:
    """AUROC and share of unknown images refused, by each score; None without a held-out image."""
    known = torch.ones(support.n_classes, dtype=torch.bool).index_fill_(0, hidden, False)
    kept = torch.nonzero(known).flatten()
    of_known = known[support.labels]
    inside, outside = support.features[of_known & held], support.features[~of_known]
    if not len(inside):
        return None
    rows = of_known & ~held
    train = SupportSet(
        support.features[rows], torch.searchsorted(kept, support.labels[rows]), len(kept)
    )
    classifier = gaussian_classes(train, None if text is None else text.classes(kept), logit_scale)
    aurocs, refused = [], []
    for name in SCORES:
        score = fit_score(name, train, classifier, temperature)
        high, low = (score.score(features).numpy() for features in (inside, outside))
        aurocs.append(auroc(high, low))
        refused.append(1 - fpr_at_95(high, low))
    return aurocs, refused


def best_elsewhere(aurocs: NDArray[np.float64]) -> NDArray[np.intp]:
    """(T,) the score that is best in the other turns, for each of (T, S) turns by scores."""
    elsewhere: NDArray[np.intp] = (aurocs.sum(axis=0) - aurocs).argmax(axis=1)
    return elsewhere
