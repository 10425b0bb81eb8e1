"""The key-value cache of the Tip-Adapter family: every support image votes for its own class.

With keys F_i, one per support image, and a query f of unit norm, class c's votes are

    votes_c(f) = sum over the images i of class c of w_i exp(-beta (1 - f.F_i)),

a product with one-hot values in the papers, and a sum by class here: the product would spend C
times the additions. Affinities lie keys first, (N, M), because rows are what adds up fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.classifier import BlockedClassifier
from fewshot.support import SupportSet

BLOCK = 2**21  # affinities at a time, 8 MiB: small enough for a cache, large enough for a product


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """Keys, and the class that each votes for.

    Attributes:
        keys: (N, D), or (N, Q) where channels were chosen.
        labels: (N,) int64.
        n_classes: C.
        weights: (N,) weight w of each key's vote; None for 1.
        channels: (Q,) the channels of a feature that meet the keys, renormalised; None for all.
    """

    keys: Tensor
    labels: Tensor
    n_classes: int
    weights: Tensor | None = None
    channels: Tensor | None = None

    kind: ClassVar[str] = "keys and values"

    @property
    def block(self) -> int:
        """Queries whose affinities number `BLOCK`; at least one."""
        return max(1, BLOCK // len(self.keys))

    def affinities(self, features: Tensor) -> Tensor:
        """(N, M) inner products f.F of (M, D) features with the keys."""
        return self.keys @ on_channels(features, self.channels).T

    def votes(self, features: Tensor, beta: float) -> Tensor:
        """(M, C) votes; gradients reach keys and weights."""
        votes = torch.exp(beta * (self.affinities(features) - 1))
        if self.weights is not None:
            votes = self.weights[:, None] * votes
        zeros = votes.new_zeros(self.n_classes, len(features))
        return zeros.index_add(0, self.labels, votes).T

    @torch.no_grad()
    def votes_by_beta(
        self, features: Tensor, betas: Sequence[float], weights: Tensor | None = None
    ) -> Iterator[tuple[slice, int, int, Tensor]]:
        """Votes of many betas from affinities computed once, a block of queries at a time.

        Args:
            features: (M, D).
            betas: The sharpnesses to try.
            weights: (G, N) alternatives to the keys' own weights.

        Yields:
            A block of queries, the number of a beta and of a row of weights, and (C, block) votes.
        """
        if weights is None and self.weights is not None:
            weights = self.weights[None]
        for start in range(0, len(features), self.block):
            block = slice(start, min(start + self.block, len(features)))
            distances = self.affinities(features[block]).sub_(1)
            votes, weighted = torch.empty_like(distances), torch.empty_like(distances)
            for k, beta in enumerate(betas):
                torch.mul(distances, beta, out=votes).exp_()
                for g in range(1 if weights is None else len(weights)):
                    if weights is not None:
                        torch.mul(votes, weights[g, :, None], out=weighted)
                    zeros = votes.new_zeros(self.n_classes, votes.shape[1])
                    summed = votes if weights is None else weighted
                    yield block, k, g, zeros.index_add_(0, self.labels, summed)

    def all_votes(
        self, features: Tensor, betas: Sequence[float], weights: Tensor | None = None
    ) -> Tensor:
        """(B, G, M, C) votes of B betas and G rows of weights, one row where there are none."""
        n_weights = 1 if weights is None else len(weights)
        result = features.new_empty(len(betas), n_weights, len(features), self.n_classes)
        for block, k, g, votes in self.votes_by_beta(features, betas, weights):
            result[k, g, block] = votes.T
        return result


@dataclass(frozen=True, eq=False)
class CacheClassifier(BlockedClassifier):
    """Zero-shot logits and, alpha times, a cache's votes.

    Attributes:
        text: (C, D) class text features times CLIP's inverse temperature.
        cache: What votes.
        alpha: Weight of the votes.
        beta: Their sharpness.
        stats: See `Classifier`.
    """

    text: Tensor
    cache: KeyValueCache
    alpha: float
    beta: float
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "cache"

    @property
    def block(self) -> int:
        """Queries whose affinities number `BLOCK`."""
        return self.cache.block

    def block_logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        votes = self.cache.votes(features, self.beta)
        return torch.add(linear(features, self.text), votes, alpha=self.alpha)


def on_channels(features: Tensor, channels: Tensor | None) -> Tensor:
    """(..., Q) features on some channels at unit norm; as they are where all channels count."""
    return features if channels is None else normalize(features[..., channels], dim=-1)


def keys_of(support: SupportSet) -> Tensor:
    """(N, D) keys at unit norm: the mean over an image's views, or its center crop without."""
    if support.views is None:
        return support.features
    return normalize(support.views.mean(dim=0), dim=-1)
