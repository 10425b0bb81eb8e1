"""Affinities between the support images and the keys, computed once for all steps of a training."""

import torch
from torch import Tensor

from fewshot.support import SupportSet
from fewshot.training import views_of

KEPT = 2**26  # affinities, 256 MiB; where there are more, each step computes those of its images


class SupportAffinities:
    """The affinities exp(-beta (1 - f.F_i)) of support images f to the keys F.

    They lie in T turns of C classes, T being the images of the largest class: in turn 0 the first
    key of every class, and so on, so that the sums over a class's keys are sums over turns. A place
    without a key has affinity 0.

    Args:
        images: The support set, in the keys' features.
        keys: (N, Q) of the same images.
        beta: The sharpness.

    Attributes:
        turns: T.
        place: (N,) where each key lies among the T C places.
    """

    def __init__(self, images: SupportSet, keys: Tensor, beta: float) -> None:
        labels, counts = images.labels, images.counts
        self.turns, self._n_classes, self._beta = int(counts.max()), images.n_classes, beta
        order = torch.argsort(labels, stable=True)
        starts = counts.cumsum(0) - counts
        turn = torch.empty_like(labels)
        turn[order] = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
        self.place = turn * self._n_classes + labels
        places = self.turns * self._n_classes
        self._keys = keys.new_zeros(places, keys.shape[1]).index_copy_(0, self.place, keys)
        self._offset = keys.new_full((places,), -torch.inf).index_fill_(0, self.place, -beta)
        views = views_of(images)
        kept = len(views) * len(labels) * places <= KEPT
        self._of_views = [self._computed(view) for view in views] if kept else None

    def of(self, f: Tensor, rows: Tensor, view: int) -> Tensor:
        """(B, T, C) affinities of (B, Q) features f, which are these rows of that view."""
        known = self._of_views
        affinities = self._computed(f) if known is None else known[view][rows]
        return affinities.view(len(f), self.turns, self._n_classes)

    def _computed(self, f: Tensor) -> Tensor:
        return torch.addmm(self._offset, f, self._keys.T, alpha=self._beta).exp_()
