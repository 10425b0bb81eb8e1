"""The prediction for one image: its most probable classes, or why it could not be read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cache.errors import UserError, count
from fewshot.model_selection.conformal import REFUSED, require_coverage

UNKNOWN = "unknown"


@dataclass(frozen=True)
class PredictionForm:
    """The form in which predictions are asked for.

    Attributes:
        top: k, the classes given for each image; all where there are fewer.
        min_confidence: Below it the label is `unknown`.
        unknown: The label is `unknown`, too, where the image is like none of the classes.
        coverage: Give the set of classes that holds the true one with this probability.

    Raises:
        UserError: Fewer than one class, or a number that is no probability.
    """

    top: int = 5
    min_confidence: float = 0.0
    unknown: bool = False
    coverage: float | None = None

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(
                f"top must be at least 1, the classes given for each image; got {self.top}"
            )
        if not 0 <= self.min_confidence <= 1:
            raise UserError(
                f"min_confidence must be a probability, 0..1; got {self.min_confidence:g}"
            )
        if self.coverage is not None:
            require_coverage(self.coverage)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        path: As it was named; of an image in memory, the file it came from, else `images[i]`.
        classes: Names of the top k, most probable first; of equals the lower class id first.
        probabilities: Theirs, calibrated, each 0..1.
        min_confidence: Below it the label is `unknown`.
        p_value: The share of known images that look as foreign as this one; at 0.05 or less the
            label is `unknown`. None where it was not asked for.
        prediction_set: Names of the classes in the set, most probable first; None likewise.
        labels: Names of the labels of an image that may have several, possibly none, most probable
            first; None where it has one.
        label_probabilities: Theirs; None likewise.
    """

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    min_confidence: float = 0.0
    p_value: float | None = None
    prediction_set: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    label_probabilities: tuple[float, ...] | None = None

    @property
    def confidence(self) -> float:
        """The probability of the most probable class."""
        return self.probabilities[0]

    @property
    def label(self) -> str:
        """The most probable class, or `unknown` where the image is not `known`.

        Of an image that may have several labels, all of them with semicolons between.
        """
        if self.labels is not None:
            return ";".join(self.labels)
        return self.classes[0] if self.known else UNKNOWN

    @property
    def known(self) -> bool:
        """True if it passes each test asked for; a class may itself be called `unknown`."""
        like_known = self.p_value is None or self.p_value > REFUSED
        return like_known and self.confidence >= self.min_confidence


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read.

    Attributes:
        path: As in `Prediction`.
        reason: Why.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class PredictionCounts:
    """How many images there were.

    Attributes:
        classified: That could be read; `unknown` are among them.
        unknown: That pass not every test asked for.
        unreadable: That could not.
        there: Whose predictions were there already, of an earlier run.
    """

    classified: int
    unknown: int
    unreadable: int
    there: int = 0

    def __str__(self) -> str:
        """Such as `60 images classified, 3 of them unknown, 2 unreadable and skipped`."""
        parts = [f"{count(self.classified, 'image')} classified"]
        if self.unknown:
            parts.append(f"{self.unknown:,} of them unknown")
        if self.unreadable:
            parts.append(f"{self.unreadable:,} unreadable and skipped")
        if self.there:
            parts.append(f"{self.there:,} of an earlier run kept")
        return ", ".join(parts)


def distinct(classnames: Sequence[str]) -> tuple[str, ...]:
    """Names by class id that tell all classes apart: where one repeats, it comes with its id."""
    times = Counter(classnames)
    return tuple(
        f"{name} (class {i})" if times[name] > 1 else name for i, name in enumerate(classnames)
    )
