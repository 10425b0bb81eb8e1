"""The method to use, and how good that choice may be expected to be.

Of many methods the best on some images is partly the luckiest on them, so its own accuracy there
promises too much. Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample
predictions for efficient and accurate cross-validation", Machine Learning 2018,
https://arxiv.org/abs/1708.07180 (BBC-CV): resample the judged images, choose by those drawn, score
the choice on those not drawn. Nothing is fitted again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import UserError
from fewshot.metrics import per_class_accuracy, wilson
from fewshot.model_selection.calibration import expected_calibration_error, log_loss, temperature
from fewshot.model_selection.cross_validation import OutOfFold
from fewshot.model_selection.resampling import bootstrap, judged

CALIBRATING = 10_000  # images that a temperature is found on: one number needs no more


@dataclass(frozen=True)
class MethodScore:
    """Scores of one method on the held-out images; shares are in 0..1.

    Attributes:
        name: The method's.
        accuracy: Top-1.
        interval: Its 95 % interval, Wilson's, as if each group of near-duplicates were one image.
        balanced_accuracy: Mean over the classes of the accuracy within the class.
        temperature: T, under which softmax(logits / T) are its probabilities.
        log_loss: Mean -log p of the labels, at T.
        calibration_error: Expected calibration error at T.
        behind: The 95 % bootstrap interval of the winner's accuracy less this one's.
        chosen: Share of the resamples in which this method was chosen.
        seconds: Tuning and fitting it in all folds took.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    temperature: float
    log_loss: float
    calibration_error: float
    behind: tuple[float, float]
    chosen: float
    seconds: float


@dataclass(frozen=True)
class Selection:
    """The winner, and what choosing it promises.

    Attributes:
        winner: Its name.
        accuracy: What to expect of new images, corrected for having chosen: of a classifier that
            learned from one fold less than there is, so if anything too low.
        interval: The 95 % interval of that.
        scores: Of all methods, the best accuracy first.
        n_images: How many were judged.
        n_groups: The same, near-duplicates counted once.
    """

    winner: str
    accuracy: float
    interval: tuple[float, float]
    scores: tuple[MethodScore, ...]
    n_images: int
    n_groups: int

    def score_of(self, name: str) -> MethodScore | None:
        """Return the score of a method; None if it was not judged."""
        return next((score for score in self.scores if score.name == name), None)


def select(
    tried: Sequence[OutOfFold], labels: Tensor, *, groups: Tensor | None = None, seed: int = 1
) -> Selection:
    """Of the methods within one standard error of the best accuracy, that of lowest log-loss.

    The rule is `choosing.best`'s: accuracy decides as far as it can tell methods apart, and
    log-loss, at the best of `TEMPERATURES` for each method, the rest. Every resample
    chooses by that rule.

    The unit of chance is the group of near-duplicates. A resample scores its choice on those it
    did not draw, some 37 %, whose accuracy varies 1.3 times as much as that of all images; so
    BBC-CV's interval is rather too wide than too narrow. Yet it cannot see past what was seen: of
    twelve right ones it would promise that all are, always. So it is stretched to Wilson's.

    Args:
        tried: One method or more, all judged on the same images.
        labels: (N,) class ids.
        groups: (N,) near-duplicates; each image is its own group without it.
        seed: Of the resamples, and of the images that temperatures are found on.

    Raises:
        UserError: No method, or fewer than two groups of judged images.
    """
    if not tried:
        raise UserError("no method could be tried; see why each failed")
    found = judged(tried, labels, groups)
    rows, n_groups = found.rows, found.n_groups
    truth = labels[rows]
    if n_groups < 2:
        raise UserError(
            f"methods are compared on images held out, and there are {n_groups} to hold out; "
            "label a second photo of some classes, and not a near-duplicate"
        )
    calibrated = [_calibrated(one, rows, truth, seed) for one in tried]
    accuracy, winner = found.right.mean(axis=0), found.chosen
    drawn = bootstrap(found.right, found.losses, found.group, seed)
    share = np.bincount(drawn.choices, minlength=len(tried)) / len(drawn.choices)
    scores = [
        MethodScore(
            name=one.name,
            accuracy=float(accuracy[m]),
            interval=wilson(float(accuracy[m]), n_groups),
            balanced_accuracy=per_class_accuracy(one.logits[rows].argmax(dim=1), truth),
            temperature=calibrated[m][0],
            log_loss=calibrated[m][1],
            calibration_error=calibrated[m][2],
            behind=_interval(drawn.accuracies[:, winner] - drawn.accuracies[:, m]),
            chosen=float(share[m]),
            seconds=one.seconds,
        )
        for m, one in enumerate(tried)
    ]
    expected = float(drawn.scores.mean())
    ends = (_interval(drawn.scores), wilson(expected, n_groups))
    return Selection(
        winner=tried[winner].name,
        accuracy=expected,
        interval=(min(low for low, _ in ends), max(high for _, high in ends)),
        scores=tuple(sorted(scores, key=lambda score: -score.accuracy)),
        n_images=len(rows),
        n_groups=n_groups,
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _calibrated(
    tried: OutOfFold, rows: Tensor, truth: Tensor, seed: int
) -> tuple[float, float, float]:
    """Temperature, log-loss and calibration error under it, on some of the judged images."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(rows), generator=generator)[:CALIBRATING]
    logits, labels = tried.logits[rows[some]].double(), truth[some]
    t = temperature(logits, labels)
    error = expected_calibration_error(torch.softmax(logits / t, dim=1), labels)
    return t, log_loss(logits, labels, t), error
