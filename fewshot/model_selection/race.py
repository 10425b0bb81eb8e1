"""Cross-validate methods fold by fold; go no further with what cannot win any more.

Races of this kind: Maron and Moore, "Hoeffding Races: Accelerating Model Selection Search for
Classification and Function Approximation", NeurIPS 1993; here by the bootstrap that judges the
choice anyway.

A method given up is not among those that the choice is corrected for (see `selection`), so the
correction is too small by what such a method would have won. That is next to nothing: of twelve
methods that guess one of three classes of 60 images, 1.2 were given up on average of 200 tasks, and
the accuracy promised rose by 0.12 points, to 33.3 %. At a minimum chance of 0.025 it was 0.39.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from cache.progress import progress
from fewshot.model_selection.cross_validation import Failed, OutOfFold
from fewshot.model_selection.resampling import bootstrap, judged

# A method is given up when fewer than this share of the resamples of the images that it has judged
# would choose it before the winner so far: when even the upper end of a 98 % interval has it lose.
MIN_CHANCE = 0.01

Trial = Callable[[str], Iterator[OutOfFold | Failed]]


@dataclass(frozen=True)
class GivenUp:
    """A method that was not tried on all folds, as it could not win any more.

    Attributes:
        name: Name of the method.
        images: How many images it had judged.
        accuracy: Its top-1 accuracy on them, in 0..1.
        ahead: The method that was ahead.
        accuracy_ahead: Its accuracy on the same images.
        seconds: Tuning, fitting and classifying until then.
    """

    name: str
    images: int
    accuracy: float
    ahead: str
    accuracy_ahead: float
    seconds: float


@dataclass(frozen=True)
class Tried:
    """Methods that were tried, by what became of them.

    Attributes:
        finished: Those that judged all images.
        failed: Those that could not be fitted.
        given_up: Those that could not win any more.
    """

    finished: tuple[OutOfFold, ...] = ()
    failed: tuple[Failed, ...] = ()
    given_up: tuple[GivenUp, ...] = ()

    def __add__(self, other: "Tried") -> "Tried":
        """Join the methods of both."""
        return Tried(
            self.finished + other.finished,
            self.failed + other.failed,
            self.given_up + other.given_up,
        )


def try_all(what: str, names: Sequence[str], trial: Trial, costs: Sequence[float]) -> Tried:
    """Try every method on all folds.

    Args:
        what: Name of the work, for progress.
        names: The methods.
        trial: Cross-validates a method, fold by fold.
        costs: Of each, in any unit, by which progress estimates the time left.
    """
    finished: list[OutOfFold] = []
    failed: list[Failed] = []
    with progress(what, len(names), costs=costs) as advance:
        for i, name in enumerate(names):
            *_, found = trial(name)
            if isinstance(found, OutOfFold):
                finished.append(found)
            else:
                failed.append(found)
            advance(1, _now(names, i + 1))
    return Tried(tuple(finished), tuple(failed))


def race(
    names: Sequence[str],
    trial: Trial,
    costs: Sequence[float],
    before: Tried,
    labels: Tensor,
    fold: Tensor,
    *,
    groups: Tensor | None = None,
    seed: int = 1,
) -> Tried:
    """Try every method on one fold, then the most promising per second on the others.

    Args:
        names: Further methods.
        trial: Cross-validates a method, fold by fold.
        costs: Of each, in any unit, as far as is known before.
        before: What became of others, one of which finished.
        labels: (N,) class ids.
        fold: (N,) by `folds`.
        groups: (N,) near-duplicates.
        seed: Of the resamples.

    Returns:
        All methods, those before first.
    """
    looked, begun = _first_looks(names, trial, costs, before, labels, groups, seed)
    finished, failed, given_up = [*looked.finished], [*looked.failed], [*looked.given_up]
    ahead = finished[judged(finished, labels, groups).chosen]
    every = fold >= 0
    left = [one.seconds * (int(every.sum()) / int(one.judged.sum()) - 1) for one, _ in begun]
    order = [one.name for one, _ in begun]
    with progress("promising methods", len(begun), costs=left) as advance:
        for i, (first, rest) in enumerate(begun):
            for found in chain([first], rest):
                if isinstance(found, Failed):
                    failed.append(found)
                elif bool((found.judged == every).all()):
                    finished.append(found)
                    ahead = finished[judged(finished, labels, groups).chosen]
                elif chance(found, ahead, labels, groups, seed) < MIN_CHANCE:
                    given_up.append(_given_up(found, ahead))
                    break
            advance(1, _now(order, i + 1))
    return Tried(tuple(finished), tuple(failed), tuple(given_up))


def _first_looks(
    names: Sequence[str],
    trial: Trial,
    costs: Sequence[float],
    before: Tried,
    labels: Tensor,
    groups: Tensor | None,
    seed: int,
) -> tuple[Tried, list[tuple[OutOfFold, Iterator[OutOfFold | Failed]]]]:
    """Try every method on one fold.

    Returns:
        Those before and those that failed or were given up; and of the others the first fold and
        the rest, the most promising per second first.
    """
    failed: list[Failed] = []
    given_up: list[GivenUp] = []
    ahead = before.finished[judged(before.finished, labels, groups).chosen]
    begun: list[tuple[float, OutOfFold, Iterator[OutOfFold | Failed]]] = []
    with progress("first look at further methods", len(names), costs=costs) as advance:
        for i, name in enumerate(names):
            rest = trial(name)
            first = next(rest)
            if isinstance(first, Failed):
                failed.append(first)
            elif (share := chance(first, ahead, labels, groups, seed)) < MIN_CHANCE:
                given_up.append(_given_up(first, ahead))
            else:
                begun.append((share / first.seconds, first, rest))
            advance(1, _now(names, i + 1))
    begun.sort(key=lambda one: -one[0])
    looked = before + Tried(failed=tuple(failed), given_up=tuple(given_up))
    return looked, [(first, rest) for _, first, rest in begun]


def chance(
    one: OutOfFold, ahead: OutOfFold, labels: Tensor, groups: Tensor | None = None, seed: int = 1
) -> float:
    """Return the share of resamples in which a method would be chosen before the one ahead.

    Resampled are the images that it has judged so far. Of equals it is chosen, and it is where
    there is too little to resample.
    """
    both = judged([one, ahead], labels, groups)
    if both.n_groups < 2:
        return 1.0
    choices = bootstrap(both.right, both.losses, both.group, seed).choices
    return float((choices == 0).mean())


def _now(names: Sequence[str], i: int) -> str:
    """The note of progress on the method that comes next."""
    return f"now {names[i]}" if i < len(names) else ""


def _given_up(one: OutOfFold, ahead: OutOfFold) -> GivenUp:
    images = int(one.judged.sum())
    same = int((ahead.correct & one.judged).sum()) / images
    return GivenUp(one.name, images, one.accuracy, ahead.name, same, one.seconds)
