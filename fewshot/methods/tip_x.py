"""TIP-X: Tip-Adapter with a second vote, by how alike two images look to the class texts.

Udandarao et al., "SuS-X: Training-Free Name-Only Transfer of Vision-Language Models", ICCV 2023,
https://arxiv.org/abs/2211.16198; its TIP-X, here on the few labeled images as support set. Differs
from the authors' code: theirs leaves the divergences of a last, partial block of 100 queries at
zero, and scales divergences by the extremes over the queries and the affinities of other images, so
that the logits of an image depend on what is classified beside it. Here all are computed, and their
scale is that of the support set, each image of it against the others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from fewshot.checks import non_negative, positive
from fewshot.method import Grid, Method, PracticalSize, sweep_prepared
from fewshot.parts.class_distributions import ClassDistributions
from fewshot.parts.divergence_votes import TipXClassifier, slope_of
from fewshot.parts.key_value_cache import KeyValueCache, keys_of
from fewshot.parts.tip_search import evenly, search_triple
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet
from fewshot.text import Text, required


@dataclass(frozen=True)
class TipX(Method):
    """Tip-Adapter's logits plus gamma phi(-M) L; nothing is trained.

    M_i = KL(p || q_i) with p and q_i the softmax, over the classes, of the cosines of the query and
    of key i to the texts, divided by the temperature. phi is the affine map that gives divergences
    the range of affinities: none counts as an affinity of 1, and the largest of a support image
    (its center crop) from a key as the smallest affinity of such a pair.

    Attributes:
        alpha: Weight of the votes by affinity.
        beta: Sharpness of the votes.
        gamma: Weight of the votes by divergence; with alpha 0 too, this is zero-shot CLIP.
        temperature: Temperature of the class distributions.
        logit_scale: CLIP's inverse temperature.
    """

    # Tip-Adapter's pair; gamma of 3 to 10 is then best on UCF101's validation split and on held-out
    # images of WHU-RS19, by a little at few shots and hardly at 16.
    alpha: float = 10.0
    beta: float = 11.0
    gamma: float = 5.0
    temperature: float = 0.5
    logit_scale: float = 100.0

    name: ClassVar[str] = "tip-x"
    summary: ClassVar[str] = (
        "As tip-adapter, with a second vote by how photos relate to the class names."
    )
    practical_size: ClassVar[PracticalSize] = PracticalSize(
        images=10_000, logits=1_000_000, seconds=1.0
    )
    saved_as: ClassVar[tuple[type, ...]] = (TipXClassifier, KeyValueCache)
    grid: ClassVar[Grid] = {
        "beta": (0.1, 0.5, 2.0, 5.5, 8.0, 11.0, 16.0, 22.0),
        "gamma": (0.0, 2.0, 5.0, 10.0),
        "alpha": (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0),
    }

    def __post_init__(self) -> None:
        non_negative(self, "alpha", "beta", "gamma")
        positive(self, "temperature")

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return 200,000 triples on the whole validation split, of ten views of each image."""
        return PublishedRecipe(
            grid={
                "alpha": evenly(0.1, 50, 20),
                "beta": evenly(1, 50, 200),
                "gamma": evenly(0.1, 30, 50),
            },
            tune="full-val",
            views=10,
        )

    def fit(self, support: SupportSet, text: Text | None) -> TipXClassifier:
        """Store the keys and their class distributions, and find phi.

        Raises:
            UserError: There is no text.
        """
        texts = required(text, self.name)
        cache = KeyValueCache(keys_of(support), support.labels, support.n_classes)
        log_q = ClassDistributions.of(cache.keys, texts, self.temperature).log
        log_sums = torch.zeros_like(texts @ texts.T).index_add_(0, support.labels, log_q)
        images = ClassDistributions.of(support.features, texts, self.temperature)
        slope = slope_of(images, support.features, log_q, cache.keys)
        scores = (self.alpha, self.beta, self.gamma, self.logit_scale)
        return TipXClassifier(texts, cache, self.temperature, slope, log_sums, *scores)

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Both kinds of votes once, the first once per beta."""
        betas = grid.get("beta", (self.beta,))

        def prepare(fitted: Self) -> Callable[[Self], Tensor]:
            classifier = fitted.fit(support, text)
            zero_shot = classifier.zero_shot(query)
            votes = classifier.cache.all_votes(query, betas)[:, 0]
            others = classifier.divergence_votes(query)
            return lambda v: torch.add(zero_shot, votes[betas.index(v.beta)], alpha=v.alpha).add_(
                others, alpha=v.gamma
            )

        return sweep_prepared(self, grid, ("alpha", "beta", "gamma"), prepare)

    def search_published(
        self, grid: Grid, support: SupportSet, text: Text | None, features: Tensor, labels: Tensor
    ) -> Self:
        """Fit once, and search the pairs of alpha and beta for each gamma."""
        classifier = self.fit(support, text)
        zero_shot = classifier.zero_shot(features)
        others = classifier.divergence_votes(features)

        def of_gamma(gamma: float) -> tuple[Tensor, KeyValueCache]:
            return torch.add(zero_shot, others, alpha=gamma), classifier.cache

        return replace(self, **search_triple(grid, of_gamma, features, labels))
