"""NOAH's evolutionary search, and the random search that it has to beat."""

import random
from collections.abc import Callable
from functools import partial

from fewshot.endtoend.search.space import Candidate, Space

Fitness = tuple[float, float]  # accuracy, and where accuracies are equal the negative loss
Judge = Callable[[Candidate], Fitness]
POPULATION, PARENTS, MUTATED, SHARE = 50, 10, 25, 0.2  # NOAH's


def random_search(space: Space, judge: Judge, n: int, seed: int) -> Candidate:
    """The best of n candidates drawn at random; of fewer, where the space has no more."""
    found: dict[Candidate, Fitness] = {}
    _grow(found, partial(space.draw, random.Random(seed)), n, judge)
    return _best(found, 1)[0]


def evolution(space: Space, judge: Judge, n: int, seed: int) -> Candidate:
    """The best of n candidates in generations of 50.

    The first is drawn as `random_search` draws it. Of each further one half are mutations of the
    ten best so far, and half crosses of two of them; where these are not new, some are drawn.
    NOAH's code mutates only how many of the first blocks have a primitive; here any block can do
    without one, and each width mutates.
    """
    rng, found = random.Random(seed), dict[Candidate, Fitness]()
    draw = partial(space.draw, rng)
    _grow(found, draw, min(n, POPULATION), judge)
    while len(found) < n:
        parents, before = _best(found, PARENTS), len(found)

        def mutate(parents: list[Candidate] = parents) -> Candidate:
            return space.mutate(rng.choice(parents), SHARE, rng)

        def cross(parents: list[Candidate] = parents) -> Candidate:
            return space.cross(rng.choice(parents), rng.choice(parents), rng)

        _grow(found, mutate, min(n, before + MUTATED), judge)
        _grow(found, cross, min(n, before + POPULATION), judge)
        _grow(found, draw, min(n, before + POPULATION), judge)
        if len(found) == before:
            break
    return _best(found, 1)[0]


def _grow(
    found: dict[Candidate, Fitness], make: Callable[[], Candidate], goal: int, judge: Judge
) -> None:
    """Judge new candidates until there are so many; give up after twenty tries for each."""
    for _ in range(20 * (goal - len(found))):
        if len(found) >= goal:
            return
        candidate = make()
        if any(candidate) and candidate not in found:
            found[candidate] = judge(candidate)


def _best(found: dict[Candidate, Fitness], n: int) -> list[Candidate]:
    """The n fittest, the one judged first where two are equal."""
    return sorted(found, key=lambda candidate: found[candidate], reverse=True)[:n]
