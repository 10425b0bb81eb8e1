"""APE: Tip-Adapter on the channels that tell the classes apart, with votes weighed by the text.

Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV
2023, https://arxiv.org/abs/2304.01195. Differs from the authors' code: the number of channels and
the balance of the two criteria are one pair for every dataset rather than a table of them, the
number being a share of D, so that it fits any backbone; and the sum over pairs of images of
different classes is had from the classes' sums, which any number of images per class may make.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewshot.checks import fraction, non_negative
from fewshot.method import Grid, Method, PracticalSize, sweep_prepared
from fewshot.parts.channels import best_channels, on_channels
from fewshot.parts.key_value_cache import CacheClassifier, KeyValueCache, keys_of
from fewshot.parts.tip_search import published_ape_grid, search_triple
from fewshot.published_recipe import PublishedRecipe, of_dataset
from fewshot.support import SupportSet
from fewshot.text import Text, required

# Channels, of 1024, that the authors chose, and the share of variance in their criterion.
CHANNELS = {
    "imagenet": (500, 0.3),
    "caltech101": (800, 0.5),
    "dtd": (400, 0.5),
    "eurosat": (700, 0.1),
    "fgvc_aircraft": (800, 0.9),
    "food101": (700, 0.7),
    "oxford_flowers": (700, 0.6),
    "oxford_pets": (800, 0.3),
    "stanford_cars": (500, 0.4),
    "sun397": (800, 0.3),
    "ucf101": (700, 0.7),
}


@dataclass(frozen=True)
class APE(Method):
    """Tip-Adapter's votes on Q chosen channels, each weighed by how the text sees its image.

    With ' for the chosen channels, renormalised,

        logits(f) = logit_scale f.t + alpha exp(-beta (1 - f'.F')) (L o exp(gamma KL)),

    where KL_i, in bits, is the divergence of key i's one-hot label from the softmax of its cosines
    F'_i.t': images that the text knows worst count most. `best_channels` says which are chosen.

    Attributes:
        alpha: Weight of the votes; 0 is zero-shot CLIP.
        beta: Sharpness of the votes.
        gamma: How much more an image counts that the text knows less; 0 counts all alike.
        channels: Share of the D channels that are kept, more than 0 up to 1.
        balance: Share of variance in the criterion, 0 to 1; the rest goes to dissimilarity.
        logit_scale: CLIP's inverse temperature.
    """

    # Published by dataset: channels 0.4 to 0.8 of 1024, balance 0.1 to 0.9. Of a dozen triples at
    # these two, a good one at every K from 1 to 16 on UCF101's validation split and on held-out
    # images of WHU-RS19.
    alpha: float = 15.0
    beta: float = 5.5
    gamma: float = 0.1
    channels: float = 0.7
    balance: float = 0.5
    logit_scale: float = 100.0

    name: ClassVar[str] = "ape"
    summary: ClassVar[str] = "As tip-adapter, on those features only that tell your classes apart."
    practical_size: ClassVar[PracticalSize] = PracticalSize(
        images=20_000, logits=2_000_000, seconds=1.1
    )
    saved_as: ClassVar[tuple[type, ...]] = (CacheClassifier, KeyValueCache)
    grid: ClassVar[Grid] = {
        "beta": (0.1, 0.3, 1.0, 2.0, 4.0, 5.5, 8.0, 11.0, 16.0),
        "gamma": (0.0, 0.1, 0.4),
        "alpha": (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0),
    }

    def __post_init__(self) -> None:
        non_negative(self, "alpha", "beta", "gamma")
        fraction(self, "channels", above_zero=True, hint="1 keeps all")
        fraction(self, "balance", hint="1 is variance alone")

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return 80,000 triples on the whole validation split, of ten views of each image."""
        channels, balance = of_dataset(CHANNELS, dataset)
        return PublishedRecipe(
            settings={"channels": channels / 1024, "balance": balance},
            grid=published_ape_grid(dataset),
            tune="full-val",
            views=10,
        )

    def fit(self, support: SupportSet, text: Text | None) -> CacheClassifier:
        """Choose the channels and weigh the keys.

        Raises:
            UserError: There is no text.
        """
        weight, cache, divergence = self._prepared(support, text)
        weighed = replace(cache, weights=torch.exp(self.gamma * divergence))
        return CacheClassifier(weight, weighed, self.alpha, self.beta)

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Affinities once, votes once per beta and gamma."""
        betas, gammas = grid.get("beta", (self.beta,)), grid.get("gamma", (self.gamma,))

        def prepare(fitted: Self) -> Callable[[Self], Tensor]:
            weight, cache, divergence = fitted._prepared(support, text)
            zero_shot = linear(query, weight)
            weights = torch.exp(query.new_tensor(gammas)[:, None] * divergence)
            votes = cache.all_votes(query, betas, weights)
            return lambda v: torch.add(
                zero_shot, votes[betas.index(v.beta), gammas.index(v.gamma)], alpha=v.alpha
            )

        return sweep_prepared(self, grid, ("alpha", "beta", "gamma"), prepare)

    def search_published(
        self, grid: Grid, support: SupportSet, text: Text | None, features: Tensor, labels: Tensor
    ) -> Self:
        """Choose the channels once, and search the pairs of alpha and beta for each gamma."""
        weight, cache, divergence = self._prepared(support, text)
        zero_shot = linear(features, weight)

        def of_gamma(gamma: float) -> tuple[Tensor, KeyValueCache]:
            return zero_shot, replace(cache, weights=torch.exp(gamma * divergence))

        return replace(self, **search_triple(grid, of_gamma, features, labels))

    def _prepared(
        self, support: SupportSet, text: Text | None
    ) -> tuple[Tensor, KeyValueCache, Tensor]:
        """Scaled text (C, D), the cache unweighted, and the (N,) divergences in bits."""
        texts = required(text, self.name)
        keys, labels = keys_of(support), support.labels
        samples = torch.cat([texts, keys])
        sample_labels = torch.cat([torch.arange(len(texts), device=labels.device), labels])
        chosen = best_channels(texts, samples, sample_labels, self.channels, self.balance)
        keys = on_channels(keys, chosen)
        cache = KeyValueCache(keys, labels, support.n_classes, channels=chosen)
        seen = linear(keys, on_channels(texts, chosen)).softmax(dim=1)
        # The authors' epsilon is in both of the quotient's terms; other classes add nothing.
        divergence = torch.log2((1 + 1e-6) / (seen.gather(1, labels[:, None])[:, 0] + 1e-6))
        return self.logit_scale * texts, cache, divergence
