"""The key-value cache of the Tip-Adapter family: every support image votes for its own class.

With keys F_i, one per support image, and a query f of unit norm, class c's votes are

    votes_c(f) = sum over the images i of class c of w_i exp(-beta (1 - f.F_i)),

a product with one-hot values in the papers, and a sum by class here: the product would spend C
times the additions. Affinities lie keys first, (N, M), because rows are what adds up fast.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.classifier import BlockedClassifier, require_width
from fewshot.multi_label_support import MultiLabelSupport
from fewshot.parts.channels import on_channels
from fewshot.support import SupportSet

# Affinities of so many keys and queries at a time, 8 MiB: small enough for a processor's cache,
# large enough for a product. With all keys at once, 200,000 of them took 3.4 times as long.
KEYS, QUERIES = 4096, 512
SUMS = 2**26  # votes summed at a time for all betas and weights, 256 MiB: then fewer queries


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

    def affinities(self, features: Tensor) -> Tensor:
        """(N, M) inner products f.F of (M, D) features with the keys."""
        return self.keys @ on_channels(features, self.channels).T

    def votes(self, features: Tensor, beta: float) -> Tensor:
        """(M, C) votes; gradients reach keys and weights."""
        votes = torch.exp(beta * (self.affinities(features) - 1))
        if self.weights is not None:
            votes = self.weights[:, None] * votes
        zeros = votes.new_zeros(self.n_classes, features.shape[0])
        return zeros.index_add(0, self.labels, votes).T

    @torch.no_grad()
    def votes_in_blocks(
        self, features: Tensor, betas: Sequence[float], weights: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Votes of many betas from affinities computed once, a block of keys and queries at a time.

        Args:
            features: (M, D).
            betas: The B sharpnesses to try.
            weights: (G, N) alternatives to the keys' own weights, G = 1 without.

        Yields:
            A block of queries, and (B, G, C, block) votes.
        """
        if weights is None and self.weights is not None:
            weights = self.weights[None]
        n_weights = 1 if weights is None else len(weights)
        size = len(betas), n_weights, self.n_classes
        block = min(QUERIES, max(1, SUMS // math.prod(size)))
        for start in range(0, len(features), block):
            queries = slice(start, min(start + block, len(features)))
            meeting = on_channels(features[queries], self.channels).T
            sums = features.new_zeros(*size, meeting.shape[1])
            for first in range(0, len(self.keys), KEYS):
                keys = slice(first, first + KEYS)
                distances = (self.keys[keys] @ meeting).sub_(1)
                votes, weighted = torch.empty_like(distances), torch.empty_like(distances)
                for k, beta in enumerate(betas):
                    torch.mul(distances, beta, out=votes).exp_()
                    for g in range(n_weights):
                        if weights is not None:
                            torch.mul(votes, weights[g, keys, None], out=weighted)
                        summed = votes if weights is None else weighted
                        sums[k, g].index_add_(0, self.labels[keys], summed)
            yield queries, sums

    def all_votes(
        self, features: Tensor, betas: Sequence[float], weights: Tensor | None = None
    ) -> Tensor:
        """(B, G, M, C) votes of B betas and G rows of weights, one row where there are none."""
        n_weights = 1 if weights is None else len(weights)
        result = features.new_empty(len(betas), n_weights, len(features), self.n_classes)
        for queries, votes in self.votes_in_blocks(features, betas, weights):
            result[:, :, queries] = votes.transpose(2, 3)
        return result


class VotingClassifier(BlockedClassifier):
    """Logits that add a cache's votes to others, for some queries at a time."""

    text: Tensor
    cache: KeyValueCache
    beta: float

    @abstractmethod
    def with_votes(self, features: Tensor, votes: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features whose (M, C) votes are known."""

    @property
    def block(self) -> int:
        """Queries at a time."""
        return QUERIES

    def block_logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        return self.with_votes(features, self.cache.votes(features, self.beta))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features, from blocks of keys too."""
        require_width(features, self.text.shape[1])
        return self.with_votes(features, self.cache.all_votes(features, (self.beta,))[0, 0])


@dataclass(frozen=True, eq=False)
class CacheClassifier(VotingClassifier):
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

    def with_votes(self, features: Tensor, votes: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features whose (M, C) votes are known."""
        return torch.add(linear(features, self.text), votes, alpha=self.alpha)


def keys_of(support: SupportSet | MultiLabelSupport) -> Tensor:
    """(N, D) keys at unit norm: the mean over an image's views, or its center crop without."""
    if support.views is None:
        return support.features
    return normalize(support.views.mean(dim=0), dim=-1)
