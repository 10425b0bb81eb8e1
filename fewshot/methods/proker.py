"""ProKeR: kernel ridge regression of what zero-shot CLIP leaves of the labels.

Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
Models", CVPR 2025, https://arxiv.org/abs/2501.11175. Differs from the authors' code (read in a
public copy, https://github.com/omarnust/BReg-Adapter): logits are at CLIP's temperature, not
cosines, and the targets' height is a setting; targets are centered over the classes, which shifts
all classes alike; the views of an image share its weight, so lambda keeps its meaning at any number
of views, and are averaged where there would be too many samples; and beta and lambda have defaults,
where theirs are tuned on validation images for each dataset.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, one_hot

from fewshot.checks import one_of, positive
from fewshot.method import Grid, Method, PracticalSize, sweep_prepared
from fewshot.parts.kernels import KernelClassifier, kernel_of
from fewshot.parts.memory import require_memory
from fewshot.published_recipe import PublishedRecipe, of_dataset
from fewshot.support import SupportSet
from fewshot.text import Text, features_of

Correction = Literal["published", "exact"]
MAX_SAMPLES = 4096  # views are samples up to so many, and beyond are averaged: the cost is cubic
# Condition number of K + lambda V I up to which single precision does. On five datasets it moved
# logits by 0.0008 at most, and no image to another class, at any from 100 to 10 million.
SINGLE = 1e5


GRIDS = {  # of the authors' code; each dataset has its own
    "sun397": {
        "beta": tuple(round(0.1 + 9.9 * i / 19, 4) for i in range(20)),
        "lmbda": tuple(round(0.01 + 9.99 * i / 9, 4) for i in range(10)),
    }
}


@dataclass(frozen=True)
class ProKeR(Method):
    """Zero-shot logits, corrected near the support images by how far off they are there.

    With zero-shot logits f0, the kernel k(x, x') = exp(-beta (1 - x.x')), which for unit vectors
    is exp(-beta |x - x'|^2 / 2), K its values on the support images S, and V views,

        f(x) = f0(x) + w k(x, S) (K + lambda V I)^-1 (margin Y - f0(S)).

    exact: w = 1, the minimizer over the kernel's space of the squared error of f plus lambda
    |f - f0|^2; an endless lambda is zero-shot.

    published: w = lambda, as in the authors' code, which has (K / lambda + I)^-1. Then lambda is
    a step size too: 0 is zero-shot, and an endless one adds the residuals of all support images,
    each as far as its kernel reaches, much as Tip-Adapter does.

    Y is one-hot; the paper's, against cosines for f0, is a margin of the logit scale. Without text
    f0 is zero.

    Attributes:
        beta: Sharpness of the kernel: the higher, the narrower.
        lmbda: Penalty, lambda.
        correction: Rule for w, as above: `published` or `exact`.
        margin: Logits, in nats, by which the targets put the right class ahead of the others.
        logit_scale: CLIP's inverse temperature.
    """

    # On UCF101's validation split, at 1, 4 and 16 shots: a beta of 1 to 4 is best; a margin of 100,
    # the authors', needs a lambda of 0.3 for accuracy and of 0.1 for log-loss, one of 50 does well
    # by both at 0.4. Each at its best, the exact correction (of margin 15 or 20) loses 0.8 % at 1
    # shot and 0.2 % at 4, and wins 0.4 % at 16. The authors' beta and lambda for all datasets at
    # once, found on ImageNet with RN50, go from 3 and 0.05 at 1 shot to 1.7 and 0.1 at 16.
    beta: float = 3.0
    lmbda: float = 0.4
    correction: Correction = "published"
    margin: float = 50.0
    logit_scale: float = 100.0

    name: ClassVar[str] = "proker"
    summary: ClassVar[str] = (
        "Learns from your photos where the class names go wrong, and corrects for that."
    )
    practical_size: ClassVar[PracticalSize] = PracticalSize(images=2000, seconds=0.5)
    saved_as: ClassVar[tuple[type, ...]] = (KernelClassifier,)
    grid: ClassVar[Grid] = {"beta": (1.0, 2.0, 4.0, 8.0), "lmbda": (0.1, 0.4, 1.6)}

    def __post_init__(self) -> None:
        positive(self, "beta", "lmbda", "margin")
        one_of(self, "correction", get_args(Correction))

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return 200 pairs on few validation images; the grid is known of one dataset."""
        return PublishedRecipe(
            settings={"correction": "published", "margin": self.logit_scale},
            grid=of_dataset(GRIDS, dataset),
            tune="val",
            views=10,
        )

    def fit(self, support: SupportSet, text: Text | None) -> KernelClassifier:
        """Fit in closed form.

        Raises:
            UserError: The kernel of so many support images does not fit in memory.
        """
        samples, labels, n_views = _samples(support, self.lmbda)
        _require_memory(samples, 3 * len(samples))
        kernel = kernel_of(samples @ samples.T, self.beta)
        residuals = self._residuals(samples, labels, support.n_classes, text)
        coefficients = self._coefficients(kernel, residuals, n_views)
        anchor = None if text is None else self.logit_scale * features_of(text).to(samples)
        return KernelClassifier(samples, coefficients, self.beta, anchor)

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Cosines once, the kernel once for each beta, a factorization for each lambda.

        An eigendecomposition would do for all lambdas, at the price of thirty factorizations.
        """
        samples, labels, n_views = _samples(support, min(grid.get("lmbda", (self.lmbda,))))
        _require_memory(samples, 4 * len(samples) + 2 * len(query))
        x = query.to(samples)
        among, across = samples @ samples.T, x @ samples.T
        zero_shot = x.new_zeros(()) if text is None else linear(x, features_of(text).to(x))

        def prepare(fitted: Self) -> Callable[[Self], Tensor]:
            kernel, reach = (kernel_of(cosines.clone(), fitted.beta) for cosines in (among, across))

            def logits(variant: Self) -> Tensor:
                residuals = variant._residuals(samples, labels, support.n_classes, text)
                correction = reach @ variant._coefficients(kernel, residuals, n_views)
                return (variant.logit_scale * zero_shot + correction).to(query)

            return logits

        return sweep_prepared(self, grid, ("lmbda", "correction", "margin", "logit_scale"), prepare)

    def _residuals(
        self, samples: Tensor, labels: Tensor, n_classes: int, text: Text | None
    ) -> Tensor:
        """(N, C) margin Y - f0(S), less the mean over the classes."""
        residuals = self.margin * one_hot(labels, n_classes).to(samples)
        if text is not None:
            residuals -= linear(samples, self.logit_scale * features_of(text).to(samples))
        return residuals - residuals.mean(dim=1, keepdim=True)

    def _coefficients(self, kernel: Tensor, residuals: Tensor, n_views: int) -> Tensor:
        """(N, C) w (K + lambda V I)^-1 (margin Y - f0(S)); K is as before afterwards."""
        ridge = self.lmbda * n_views
        kernel.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(kernel)
        kernel.diagonal().sub_(ridge)
        weight = self.lmbda if self.correction == "published" else 1.0
        return weight * torch.cholesky_solve(residuals, factor)


def _samples(support: SupportSet, lmbda: float) -> tuple[Tensor, Tensor, int]:
    """Samples (N', D), their labels (N',), and how many share an image's weight.

    The samples are of single precision where that does; no eigenvalue of K exceeds N'.
    """
    features, labels, n_views = *support.samples(), support.n_views
    if n_views * len(support.labels) > MAX_SAMPLES and support.views is not None:
        mean = support.views.double().mean(dim=0)
        features, labels, n_views = normalize(mean, dim=1).float(), support.labels, 1
    condition = 1 + len(features) / (lmbda * n_views)
    return features if condition <= SINGLE else features.double(), labels, n_views


def _require_memory(samples: Tensor, rows: int) -> None:
    """Raise UserError unless so many rows of a kernel of N columns fit in memory."""
    require_memory(
        rows * len(samples) * samples.element_size(),
        f"{ProKeR.name} with {len(samples)} support images",
        "use fewer shots, or ridge",
    )
