"""The compositions that a search chooses among: a width for each primitive in each block."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cache.errors import UserError
from fewshot.endtoend.parts.elastic import Place, elastic
from fewshot.endtoend.search.supernet import Supernet

Candidate = tuple[int, ...]  # a width for each place


@dataclass(frozen=True)
class Space:
    """Candidates under a budget.

    Attributes:
        numbers: Place -> choice of width -> how many numbers are trained there.
        fixed: Numbers that are trained whatever the widths, such as a classifier's.
        budget: Maximum of trained numbers.

    Raises:
        UserError: Not one part fits into the budget.
    """

    numbers: Mapping[Place, Mapping[int, int]]
    fixed: int
    budget: int

    def __post_init__(self) -> None:
        smallest = self.fixed + min(min(of.values()) for of in self._parts())
        if smallest > self.budget:
            raise UserError(
                f"--budget must be {smallest:,} or more, the size of the smallest composition of "
                f"these widths; got {self.budget:,}"
            )

    def _parts(self) -> Iterator[Mapping[int, int]]:
        for of in self.numbers.values():
            yield {width: n for width, n in of.items() if width}

    @classmethod
    def of(cls, supernet: Supernet, budget: int) -> "Space":
        """The space of a supernet's compositions that train no more than so many numbers."""
        numbers: dict[Place, dict[int, int]] = {}
        for module in elastic(supernet.clip.model):
            of = numbers.setdefault(module.place, dict.fromkeys(supernet.choices, 0))
            for width in supernet.choices:
                of[width] += module.trained(width)
        trained = sum(parameter.numel() for parameter in supernet.learner.parameters.values())
        return cls(numbers, trained - sum(max(of.values()) for of in numbers.values()), budget)

    def size(self, candidate: Candidate) -> int:
        """How many numbers are trained."""
        pairs = zip(self.numbers.values(), candidate, strict=True)
        return self.fixed + sum(of[width] for of, width in pairs)

    def widths(self, candidate: Candidate) -> dict[Place, int]:
        """Place -> width."""
        return dict(zip(self.numbers, candidate, strict=True))

    def draw(self, rng: random.Random) -> Candidate:
        """Uniform widths, narrowed until they fit."""
        return self._fitted([rng.choice(list(of)) for of in self.numbers.values()], rng)

    def mutate(self, candidate: Candidate, share: float, rng: random.Random) -> Candidate:
        """That share of the widths drawn again, narrowed until they fit."""
        pairs = zip(self.numbers.values(), candidate, strict=True)
        return self._fitted(
            [rng.choice(list(of)) if rng.random() < share else width for of, width in pairs], rng
        )

    def cross(self, one: Candidate, other: Candidate, rng: random.Random) -> Candidate:
        """Each width from one of two, narrowed until they fit."""
        return self._fitted([rng.choice(pair) for pair in zip(one, other, strict=True)], rng)

    def _fitted(self, widths: list[int], rng: random.Random) -> Candidate:
        """Candidate of these widths, random ones of them lowered to the next until it fits."""
        places = list(self.numbers.values())
        while self.size(tuple(widths)) > self.budget:
            i = rng.choice([i for i, width in enumerate(widths) if width])
            widths[i] = max(width for width in places[i] if width < widths[i])
        return tuple(widths)
