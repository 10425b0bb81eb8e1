"""The labels of a folder of photos, and the classifier that follows them."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.errors import UserError, printable
from fewshot.teaching.label_log import ASIDE, Action, LabelLog
from fewshot.teaching.live_classifier import LiveClassifier, live_classifier
from fewshot.teaching.progress_so_far import Labels, Progress
from fewshot.teaching.proposals import EVERY, random_order, useful
from fewshot.teaching.taught_photos import TaughtPhotos

LONGEST = 100  # characters of a class's name


class StaleError(Exception):
    """An action by somebody who has not seen a later one, of another window, on the same photos."""


@dataclass
class _Photo:
    """A photo, and all that is known of it.

    `since` is the number of the action that changed it last.
    """

    label: str | None = None
    drawn: bool = False
    since: int = 0


class TeachingSession:
    """Labels, and what follows from them; of many threads, one at a time inside `lock`.

    Args:
        photos: The photos.
        log: Their labels so far.
        classes: Names to begin with, beside those in the log.
        seed: Random seed for drawing photos.

    Attributes:
        lock: Holds off other threads; everything here needs it.
        classifier: Fitted to the labels so far; None where nothing can be said yet.
        progress: The last judgment of the labels; None before the first.
    """

    def __init__(
        self, photos: TaughtPhotos, log: LabelLog, classes: Sequence[str] = (), *, seed: int = 1
    ) -> None:
        self.photos, self.log = photos, log
        self.lock = threading.RLock()
        self.classifier: LiveClassifier | None = None
        self.progress: Progress | None = None
        self._row = {path: row for row, path in enumerate(photos.paths)}
        self._photos = [_Photo() for _ in photos.paths]
        self._order: dict[int, None] = {}  # the labeled photos in the order of their labels
        self._named: dict[str, None] = {}  # classes, in the order in which they were first heard of
        self._kept: set[str] = set()  # classes that stay without a photo
        self._before: list[list[tuple[str, str | None, bool]]] = []  # what each action changed
        self._undoable: list[int] = []
        self._text: dict[str, Tensor | None] = {}
        self._draw = random_order(len(photos.paths), seed)
        self._nearest: Tensor | None = None
        for action in log.actions:
            self._apply(action)
        new = [name for name in dict.fromkeys(map(class_name, classes)) if name not in self._kept]
        if new:
            self._apply(log.append(classes=new))
        self._refit()

    @property
    def position(self) -> int:
        """The number of the last action."""
        return self.log.position

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes: those with a photo, and those that were named without one."""
        used = {self._photos[row].label for row in self._order}
        return tuple(name for name in self._named if name in used or name in self._kept)

    @property
    def can_undo(self) -> bool:
        """True where there is an action to take back."""
        return bool(self._undoable)

    def label_of(self, row: int) -> str | None:
        """A photo's label; `ASIDE` if it is of no class, None without one."""
        return self._photos[row].label

    def labeled(self) -> dict[str, str]:
        """Path -> class, in the order in which the labels were given."""
        return {self.photos.paths[row]: str(self._photos[row].label) for row in self._order}

    def rows(self, label: str | None) -> list[int]:
        """The photos with a label, in the order given; without one for None, in folder order."""
        if label is None or label == ASIDE:
            return [row for row, photo in enumerate(self._photos) if photo.label == label]
        return [row for row in self._order if self._photos[row].label == label]

    def label(
        self, rows: Sequence[int], label: str | None, *, seen: int, drawn: bool = False
    ) -> None:
        """Give photos a label, and fit the classifier again.

        Args:
            rows: The photos.
            label: The name of a class, new or not; `ASIDE`; None takes their labels back.
            seen: The position of the log that the user has seen.
            drawn: The photo was proposed by the random draw.

        Raises:
            StaleError: One of the photos has had another label since.
            UserError: The name is none for a class.
        """
        if label:
            label = class_name(label)
        changing = [row for row in rows if self._photos[row].label != label]
        if any(self._photos[row].since > seen for row in changing):
            raise StaleError
        if changing:
            paths = [self.photos.paths[row] for row in changing]
            by_draw = paths if drawn and label and changing == [self.drawn_next()] else []
            self._apply(self.log.append(dict.fromkeys(paths, label), drawn=by_draw))
            self._refit()

    def undo(self, *, seen: int) -> list[int]:
        """Take the last action back that was not; the photos that it changed.

        Raises:
            StaleError: Something has happened since `seen`.
        """
        if self.position > seen:
            raise StaleError
        if not self._undoable:
            return []
        number = self._undoable[-1]
        before = self._before[number - 1]
        self._apply(
            self.log.append(
                {path: label for path, label, _ in before},
                drawn=[path for path, _, drawn in before if drawn],
                undoes=number,
            )
        )
        self._refit()
        return [self._row[path] for path, _, _ in before if path in self._row]

    def drawn_next(self) -> int | None:
        """The photo that the random draw proposes next; None where every photo has a label."""
        return next((row for row in self._draw if self._photos[row].label is None), None)

    def proposed(self, n: int) -> list[int]:
        """The n photos to label next, in order; every third is `drawn_next`."""
        free = self.rows(None)
        nearest = None if self._nearest is None else self._nearest[free]
        chosen = useful(self.photos.features[free], self.probabilities(free), nearest, n)
        found = [free[i] for i in chosen]
        drawn = self.drawn_next()
        if drawn is not None and self.turn_of_draw:
            found = [drawn, *(row for row in found if row != drawn)][:n]
        return found

    @property
    def turn_of_draw(self) -> bool:
        """True if the next photo proposed is that of the random draw."""
        return len(self._order) % EVERY == EVERY - 1

    def probabilities(self, rows: Sequence[int]) -> Tensor | None:
        """(M, C) probabilities of photos, C being `classes`; None without a classifier."""
        return self.classify(self.photos.features[list(rows)])

    def classify(self, features: Tensor) -> Tensor | None:
        """(M, C) probabilities of (M, D) features; None without a classifier."""
        if self.classifier is None:
            return None
        t = 1.0 if self.progress is None else self.progress.temperature
        return torch.softmax(self.classifier.logits(features) / t, dim=1)

    def least_like(self, n: int) -> list[tuple[int, float]]:
        """Photos without a label of the lowest cosine to any labeled one, and that."""
        if self._nearest is None:
            return []
        free = self.rows(None)
        found = torch.argsort(self._nearest[free], stable=True)[:n].tolist()
        return [(free[i], float(self._nearest[free[i]])) for i in found]

    def nearest_labeled(self, feature: Tensor, n: int) -> list[tuple[int, float]]:
        """The n labeled photos of the largest cosine to a (D,) feature, and that."""
        rows = list(self._order)
        cosines = self.photos.features[rows] @ feature
        found = torch.argsort(cosines, descending=True, stable=True)[:n].tolist()
        return [(rows[i], float(cosines[i])) for i in found]

    def labels(self) -> Labels:
        """The labels so far, as they are judged by."""
        rows, classes = list(self._order), self.classes
        ids = [classes.index(str(self._photos[row].label)) for row in rows]
        return Labels(
            self.photos.features[rows],
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor([self._photos[row].drawn for row in rows], dtype=torch.bool),
            [self._text_of(name) for name in classes],
            float(self.photos.encoder.identity["logit_scale"]),
            rows,
            self.position,
            classes,
        )

    def _apply(self, action: Action) -> None:
        """Take an action into the state; photos that have gone from the folder are passed over."""
        before = []
        for path, label in action.labels.items():
            row = self._row.get(path)
            if row is None:
                continue
            photo = self._photos[row]
            before.append((path, photo.label, photo.drawn))
            still = photo.drawn and not action.undoes
            photo.drawn = bool(label) and (path in action.drawn or still)
            photo.label, photo.since = label, action.number
            self._order.pop(row, None)
            if label:
                self._order[row] = None
                self._named.setdefault(label)
        for name in action.classes:
            self._named.setdefault(name)
            self._kept.add(name)
        self._before.append(before)
        if action.undoes:
            self._undoable.remove(action.undoes)
        elif before:
            self._undoable.append(action.number)

    def _refit(self) -> None:
        given = self.labels()
        self.classifier = live_classifier(
            given.features, given.labels, given.text, given.logit_scale
        )
        self._nearest = None
        if len(given.features):
            self._nearest = torch.cat(list(_nearest(self.photos.features, given.features)))

    def _text_of(self, name: str) -> Tensor | None:
        if name not in self._text:
            self._text[name] = self.photos.text_of(name)
        return self._text[name]


def class_name(text: str) -> str:
    """The name of a class as a user typed it, without space around it.

    Raises:
        UserError: It is empty, too long, or has characters that cannot be seen.
    """
    name = " ".join(text.split())
    if not name or len(name) > LONGEST or name != printable(name):
        raise UserError(
            f"a class's name must have 1 to {LONGEST} visible characters; got {text[:20]!r}"
        )
    return name


def _nearest(features: Tensor, labeled: Tensor) -> Iterator[Tensor]:
    """The largest cosine of each feature to a labeled one, a block of rows at a time."""
    for block in torch.split(features, 4096):
        yield (block @ labeled.T).amax(dim=1)
