"""TIP-X's second vote, by how alike two images look to the class texts, and its classifier."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewshot.parts.class_distributions import ClassDistributions
from fewshot.parts.key_value_cache import KEYS, QUERIES, KeyValueCache, VotingClassifier


@dataclass(frozen=True, eq=False)
class TipXClassifier(VotingClassifier):
    """Zero-shot logits, votes by affinity and votes by divergence.

    The last need no sum over keys: phi is affine and the divergence linear in log q, so a class's
    votes follow from the sum of its keys' log q.

    Attributes:
        text: (C, D) class text features at unit norm.
        cache: What votes.
        temperature: Of the class distributions.
        slope: How much a vote loses by a nat of divergence.
        log_sums: (C, C) sums of log(C q) over each class's keys.
        alpha: Weight of the votes by affinity.
        beta: Their sharpness.
        gamma: Weight of the votes by divergence.
        logit_scale: CLIP's inverse temperature.
        stats: See `Classifier`.
    """

    text: Tensor
    cache: KeyValueCache
    temperature: float
    slope: float
    log_sums: Tensor
    alpha: float
    beta: float
    gamma: float
    logit_scale: float
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "tip-x"

    def with_votes(self, features: Tensor, votes: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features whose (M, C) votes by affinity are known."""
        logits = torch.add(self.zero_shot(features), votes, alpha=self.alpha)
        return torch.add(logits, self.divergence_votes(features), alpha=self.gamma)

    def zero_shot(self, features: Tensor) -> Tensor:
        """(M, C) zero-shot logits."""
        return linear(features, self.logit_scale * self.text)

    def divergence_votes(self, features: Tensor) -> Tensor:
        """(M, C) sums over a class's keys of phi(-KL(p || q))."""
        query = ClassDistributions.of(features, self.text, self.temperature)
        counts = torch.bincount(self.cache.labels, minlength=self.cache.n_classes)
        from_uniform = query.from_uniform[:, None]
        return counts * (1 - self.slope * from_uniform) + self.slope * (query.p @ self.log_sums.T)


def slope_of(images: ClassDistributions, features: Tensor, log_q: Tensor, keys: Tensor) -> float:
    """How much phi falls by a nat of divergence; 0 where all images look alike to the texts.

    Args:
        images: Of the support images' center crops.
        features: (N, D) these crops.
        log_q: (N, C) log(C q) of the keys.
        keys: (N, D).
    """
    lowest, farthest = 1.0, 0.0
    step = max(1, KEYS * QUERIES // len(keys))
    for start in range(0, len(keys), step):
        block = slice(start, start + step)
        lowest = min(lowest, float((features[block] @ keys.T).min()))
        farthest = max(farthest, float(images.divergences(log_q, block).max()))
    return (1 - lowest) / farthest if farthest > 0 else 0.0
