"""Tip-Adapter's published search of (alpha, beta) on validation images, exact and fast.

The authors take each of 200 betas with each of 20 alphas, rebuild the votes for each, and keep the
first pair of the best accuracy. For one beta all alphas can be judged at once: at a query of class
y with zero-shot logits z and votes s, y wins against c where

    z_y - z_c + alpha (s_y - s_c) > 0,

which bounds alpha from below where s_y > s_c and from above where s_y < s_c. So y wins against all
for an interval of alphas, and counting hits is comparing the alphas with its two ends.

APE and TIP-X search a gamma as well, in the same way for each of its values.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.method import Grid
from fewshot.parts.key_value_cache import KeyValueCache
from fewshot.published_recipe import of_dataset

# Largest beta and alpha of the authors' search for each dataset, tuned by them for 16 shots.
SCALES = {
    "imagenet": (7, 3),
    "caltech101": (12, 5),
    "oxford_pets": (7, 3),
    "stanford_cars": (20, 10),
    "oxford_flowers": (50, 50),
    "food101": (10, 10),
    "fgvc_aircraft": (30, 30),
    "sun397": (12, 10),
    "dtd": (13, 13),
    "eurosat": (12, 10),
    "ucf101": (7, 3),
}

# The same of APE's authors, and their largest gamma.
APE_SCALES = {
    "imagenet": (7, 7, 0.5),
    "caltech101": (7, 7, 1),
    "dtd": (7, 7, 1),
    "eurosat": (30, 5, 1.5),
    "fgvc_aircraft": (20, 10, 1),
    "food101": (7, 7, 1),
    "oxford_flowers": (7, 7, 1),
    "oxford_pets": (7, 7, 1),
    "stanford_cars": (10, 7, 1),
    "sun397": (10, 7, 1),
    "ucf101": (10, 7, 1.5),
}


class AlphaBeta(NamedTuple):
    """The alpha and the beta of most hits, and how many these are."""

    alpha: float
    beta: float
    hits: int


def evenly(start: float, end: float, n: int) -> tuple[float, ...]:
    """Return n values from the start in equal steps, the end left out."""
    return tuple(start + i * (end - start) / n for i in range(n))


def published_grid(dataset: str) -> Grid:
    """Return the authors' 200 betas and 20 alphas for a dataset.

    Raises:
        UserError: They did not use the dataset.
    """
    beta, alpha = of_dataset(SCALES, dataset)
    return {"beta": evenly(0.1, beta, 200), "alpha": evenly(0.1, alpha, 20)}


def published_ape_grid(dataset: str) -> dict[str, tuple[float, ...]]:
    """Return APE's 200 betas, 20 alphas and 20 gammas for a dataset.

    Raises:
        UserError: Its authors did not use the dataset.
    """
    beta, alpha, gamma = of_dataset(APE_SCALES, dataset)
    return {
        "beta": evenly(0.1, beta, 200),
        "alpha": evenly(0.1, alpha, 20),
        "gamma": evenly(0, gamma, 20),
    }


def search_pair(
    grid: Grid, zero_shot: Tensor, cache: KeyValueCache, features: Tensor, labels: Tensor
) -> AlphaBeta:
    """Return the pair of most hits; of equal ones the first, beta by beta.

    Args:
        grid: Of `beta` and `alpha`.
        zero_shot: (M, C) logits to which the votes are added.
        cache: What votes.
        features: (M, D) validation images.
        labels: (M,) their classes.
    """
    betas, alphas = grid["beta"], grid["alpha"]
    candidates = features.new_tensor(alphas)
    hits = torch.zeros(len(betas), len(alphas), dtype=torch.int64, device=features.device)
    for block, by_beta in cache.votes_in_blocks(features, betas):
        own = labels[None, block]
        logits = zero_shot[block].T  # (C, block)
        leads = logits.gather(0, own) - logits
        for k, votes in enumerate(by_beta[:, 0]):
            gains = votes.gather(0, own) - votes
            # A class of equal votes never catches up: its ratio is infinite, signed by its lead.
            ratios = torch.div(leads, gains).neg_().scatter_(0, own, -torch.inf)
            least = ratios.masked_fill(gains < 0, -torch.inf).amax(dim=0)
            most = ratios.masked_fill_(gains >= 0, torch.inf).amin(dim=0)
            hits[k] += ((least[:, None] < candidates) & (candidates < most[:, None])).sum(dim=0)
    best = int(hits.flatten().argmax())
    return AlphaBeta(alphas[best % len(alphas)], betas[best // len(alphas)], int(hits.max()))


def search_triple(
    grid: Grid,
    of_gamma: Callable[[float], tuple[Tensor, KeyValueCache]],
    features: Tensor,
    labels: Tensor,
) -> dict[str, float]:
    """Return the alpha, beta and gamma of most hits by name; of equal ones the first gamma's.

    Args:
        grid: Of `beta`, `alpha` and `gamma`.
        of_gamma: The logits to which a gamma's votes are added, and what votes.
        features: As in `search_pair`, like the rest.
        labels: (M,) the classes.
    """
    pairs = {
        gamma: search_pair(grid, *of_gamma(gamma), features, labels) for gamma in grid["gamma"]
    }
    gamma = max(pairs, key=lambda gamma: pairs[gamma].hits)
    return {"alpha": pairs[gamma].alpha, "beta": pairs[gamma].beta, "gamma": gamma}
