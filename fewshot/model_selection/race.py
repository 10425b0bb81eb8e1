"""Cross-validate methods fold by fold; go no further with what cannot win any more.

Races of this kind: Maron and Moore, "Hoeffding Races: Accelerating Model Selection Search for
Classification and Function Approximation", NeurIPS 1993; here by the bootstrap that judges the
choice anyway.

A method given up is not among those that the choice is corrected for. So the correction could be
too small, but only by what such a method would have won: of eighteen methods that guess, on 60
images, ten were given up on average, and the accuracy promised was 0.1 points too high at most.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from cache.progress import progress
from fewshot.model_selection.cross_validation import Failed, OutOfFold
from fewshot.model_selection.selection import chances, leading

# A method is given up when it would be chosen before the winner so far in fewer resamples than
# this of the images that it has judged: when the upper end of a 95 % interval says that it loses.
LEAST_CHANCE = 0.025

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
    """What became of the methods.

    Attributes:
        finished: Those that judged all images.
        failed: Those that could not be fitted.
        given_up: Those that could not win any more.
    """

    finished: tuple[OutOfFold, ...] = ()
    failed: tuple[Failed, ...] = ()
    given_up: tuple[GivenUp, ...] = ()


def try_all(names: Sequence[str], trial: Trial, costs: Sequence[float], what: str) -> Tried:
    """Try every method on all folds.

    Args:
        names: The methods.
        trial: Cross-validates a method, fold by fold.
        costs: Of each, in any unit, by which progress estimates the time left.
        what: What progress calls it.
    """
    finished, failed = [], []
    with progress(what, len(names), costs=costs) as advance:
        for name, after in zip(names, [*names[1:], ""], strict=True):
            *_, found = trial(name)
            (finished if isinstance(found, OutOfFold) else failed).append(found)
            advance(1, after and f"now {after}")
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
        What became of all, those before first.
    """
    finished, failed, given_up = map(list, (before.finished, before.failed, before.given_up))
    ahead = leading(finished, labels, groups=groups)
    begun: list[tuple[float, OutOfFold, Iterator[OutOfFold | Failed]]] = []
    with progress("one fold of each", len(names), costs=costs) as advance:
        for name, after in zip(names, [*names[1:], ""], strict=True):
            rest = trial(name)
            first = next(rest)
            if isinstance(first, Failed):
                failed.append(first)
            else:
                chance = chances([ahead, first], labels, groups=groups, seed=seed)[1]
                begun.append((chance / first.seconds, first, rest))
            advance(1, after and f"now {after}")
    begun.sort(key=lambda one: -one[0])
    judged = int((fold >= 0).sum())
    left = [one.seconds * (judged / int(one.judged.sum()) - 1) for _, one, _ in begun]
    with progress("promising methods", len(begun), costs=left) as advance:
        for i, (_, first, rest) in enumerate(begun, start=1):
            for found in chain([first], rest):
                if isinstance(found, Failed):
                    failed.append(found)
                elif bool((found.judged == (fold >= 0)).all()):
                    finished.append(found)
                    ahead = leading(finished, labels, groups=groups)
                elif chances([ahead, found], labels, groups=groups, seed=seed)[1] < LEAST_CHANCE:
                    given_up.append(_given_up(found, ahead))
                    break
            advance(1, f"now {begun[i][1].name}" if i < len(begun) else "")
    return Tried(tuple(finished), tuple(failed), tuple(given_up))


def _given_up(one: OutOfFold, ahead: OutOfFold) -> GivenUp:
    images = int(one.judged.sum())
    same = int((ahead.correct & one.judged).sum()) / images
    return GivenUp(one.name, images, one.accuracy, ahead.name, same, one.seconds)
