"""Common parts of the methods of the Tip-Adapter family: two settings that act after fitting."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewshot.method import Grid, Method, sweep_prepared
from fewshot.parts.key_value_cache import CacheClassifier, KeyValueCache
from fewshot.parts.tip_search import search_pair
from fewshot.support import SupportSet
from fewshot.text import Text


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method whose votes have a weight alpha and a sharpness beta, which act after fitting."""

    alpha: float
    beta: float

    saved_as: ClassVar[tuple[type, ...]] = (CacheClassifier, KeyValueCache)

    @abstractmethod
    def fit(self, support: SupportSet, text: Text | None) -> CacheClassifier:
        """Return a cache beside the text."""

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Fit once for all alphas and betas, and compute the votes once per beta."""
        betas = grid.get("beta", (self.beta,))

        def prepare(fitted: Self) -> Callable[[Self], Tensor]:
            classifier = fitted.fit(support, text)
            zero_shot = linear(query, classifier.text)
            votes = classifier.cache.all_votes(query, betas)[:, 0]
            return lambda v: torch.add(zero_shot, votes[betas.index(v.beta)], alpha=v.alpha)

        return sweep_prepared(self, grid, ("alpha", "beta"), prepare)

    def search_published(
        self, grid: Grid, support: SupportSet, text: Text | None, features: Tensor, labels: Tensor
    ) -> Self:
        """Fit once, and find the first of the best pairs of alpha and beta."""
        classifier = self.fit(support, text)
        zero_shot = linear(features, classifier.text)
        found = search_pair(grid, zero_shot, classifier.cache, features, labels)
        return replace(self, alpha=found.alpha, beta=found.beta)
