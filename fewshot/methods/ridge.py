"""Ridge regression on CLIP features, anchored at the text: a probe in closed form.

Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970. Least
squares as a few-shot probe, with one factorization for all penalties: Kolesnikov et al., "Big
Transfer", ECCV 2020, https://arxiv.org/abs/1912.11370. Pulling the weights toward the text rather
than toward zero is CLAP's idea (Silva-Rodriguez et al., CVPR 2024,
https://arxiv.org/abs/2312.12730), there with cross-entropy and trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from fewshot.checks import positive
from fewshot.classifier import LinearClassifier
from fewshot.method import Grid, Method, sweep_prepared
from fewshot.multi_label_support import MultiLabelSupport
from fewshot.support import SupportSet
from fewshot.text import Text, features_of

BLOCK = 2**16  # samples at a time, 256 MiB of them in double precision at 512 dimensions


@dataclass(frozen=True)
class Ridge(Method):
    """The weights nearest the text's that put the right class ahead by a margin.

    With W0 the zero-shot weights, logit_scale T less its mean over the classes (a shift that all
    classes share), or zero where there is no text,

        W = argmin sum_i |W x_i - margin (e_{y_i} - 1/C)|^2 / V + penalty |W - W0|^2,

    logits W f. An infinite penalty is zero-shot CLIP; without text this is plain ridge regression
    on centered one-hot targets. There is no intercept: CLIP features have a large common
    component, so W has one in all but name, and the limit stays exactly zero-shot. Every image
    counts the same, so a larger class counts for more; the views of an image share its weight.
    The sum is over images and no mean, as a Gaussian prior on W - W0 would have it: so a penalty
    keeps its meaning at any number of images.

    Attributes:
        penalty: Weight of the distance from the text, against a sum over images.
        margin: Logits, in nats, by which the targets put the right class ahead of the others.
        logit_scale: CLIP's inverse temperature.
    """

    # Of penalties by factors of two and margins of 15 to 30, about the best at every K from 1 to 16
    # on the validation splits of UCF101 and DTD and on held-out images of WHU-RS19.
    penalty: float = 0.3
    margin: float = 20.0
    logit_scale: float = 100.0

    name: ClassVar[str] = "ridge"
    summary: ClassVar[str] = (
        "Starts from the class names and shifts them no further than your photos demand."
    )
    grid: ClassVar[Grid] = {
        "penalty": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 1e4),
        "margin": (10.0, 20.0, 40.0),
    }

    def __post_init__(self) -> None:
        positive(self, "penalty", "margin")

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Fit in closed form."""
        return self._fitted(support, text)

    def fit_multi_label(self, support: MultiLabelSupport, text: Text | None) -> LinearClassifier:
        """Do the same with a target for each label; an image's targets sum to zero."""
        return self._fitted(support, text)

    def _fitted(
        self, support: SupportSet | MultiLabelSupport, text: Text | None
    ) -> LinearClassifier:
        anchor = self._anchor(support, text)
        basis, spectrum, hot, anchored = self._factor(support, anchor)
        targets = self.margin * hot - anchored
        weight = anchor + (basis @ (targets / (spectrum + self.penalty)[:, None])).T
        return LinearClassifier(weight.to(support.features))

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Factor once for all; multiply once per penalty, the margin being a factor."""

        def prepare(fitted: Self) -> Callable[[Self], Tensor]:
            anchor = fitted._anchor(support, text)
            basis, spectrum, *targets = fitted._factor(support, anchor)
            zero_shot = linear(query, anchor.to(query))
            projected = query @ basis.to(query)  # (M, R)

            @lru_cache(maxsize=1)
            def terms(penalty: float) -> tuple[Tensor, Tensor]:
                shrunk = [one / (spectrum + penalty)[:, None] for one in targets]
                hot, anchored = (projected @ one.to(query) for one in shrunk)
                return hot, zero_shot - anchored

            def logits(variant: Self) -> Tensor:
                hot, rest = terms(variant.penalty)
                return torch.add(rest, hot, alpha=variant.margin)

            return logits

        return sweep_prepared(self, grid, ("penalty", "margin"), prepare)

    def _anchor(self, support: SupportSet | MultiLabelSupport, text: Text | None) -> Tensor:
        """(C, D) weights W0 at which an infinite penalty holds the solution."""
        if text is None:
            dim = support.features.shape[1]
            return torch.zeros(support.n_classes, dim, dtype=torch.float64)
        features = features_of(text)
        return self.logit_scale * (features - features.mean(dim=0)).double()

    def _factor(
        self, support: SupportSet | MultiLabelSupport, anchor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Basis B (D, R), spectrum e (R,), targets H and Z (R, C).

        W - W0 = (B (e + penalty)^-1 (margin H - Z))', H of the labels as ones less their mean, 1/C
        for one label, and Z of what the anchor says already. With samples X, the views of an image
        sharing its weight, and Y either of these:

            X'X = U e U':  (X'X + penalty)^-1 X'Y = U (e + penalty)^-1 U'X'Y    N >= D
            XX' = U e U':  X'(XX' + penalty)^-1 Y = X'U (e + penalty)^-1 U'Y    N < D
        """
        (features, labels), share = support.samples(), 1 / support.n_views
        n, dim = features.shape
        if n >= dim:
            # X'Y from the sums of each class, (C, D): Y would be the largest matrix of all.
            gram, sums = anchor.new_zeros(dim, dim), torch.zeros_like(anchor)
            for part, y in zip(
                torch.split(features, BLOCK), torch.split(labels, BLOCK), strict=True
            ):
                x = part.double()
                gram.addmm_(x.T, x, alpha=share)
                if y.ndim == 1:
                    sums.index_add_(0, y, x, alpha=share)
                else:
                    sums.addmm_(y.T.double(), x, alpha=share)
            spectrum, basis = torch.linalg.eigh(gram)
            hot = basis.T @ (sums - sums.mean(dim=0)).T
            return basis, spectrum, hot, basis.T @ (anchor @ gram).T
        x = features.double()
        spectrum, vectors = torch.linalg.eigh(share * x @ x.T)
        ones = (one_hot(labels, len(anchor)) if labels.ndim == 1 else labels).double()
        hot = vectors.T @ (ones - ones.mean(dim=1, keepdim=True))
        return share * x.T @ vectors, spectrum, hot, vectors.T @ linear(x, anchor)
