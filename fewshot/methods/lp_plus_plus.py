"""LP++: a linear probe that mixes image weights and text by learned multipliers.

Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024,
https://arxiv.org/abs/2404.02285. Step sizes and starting points come from the data. As in the
authors' code there are a bias and momentum, and the multipliers take a step every ten epochs.
Unlike it, the bias starts at zero rather than at random, and the multipliers' gradient is that of
their epoch: the code never clears it, so that it sums up over the whole training, which
`alpha_gradient` can bring back. Nor is the best epoch picked on validation images as it goes: all
of them are trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot

from fewshot.checks import fraction, one_of, whole
from fewshot.classifier import LinearClassifier
from fewshot.method import Grid, Method, PracticalSize, sweep_prepared
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet
from fewshot.text import Text, required
from fewshot.threads import closed_form

AlphaGradient = Literal["epoch", "sum"]
ALPHA_EVERY = 10


@dataclass(frozen=True)
class LPPlusPlus(Method):
    """Logits f.(w_k + alpha_k t_k) + b_k: no logit scale, alpha takes its place.

    With N samples F, one-hot labels and K images per class, the mean cross-entropy is minimized by
    gradient steps over all samples at once:

        w_k = sum of f_i over class k         steps of 4 N / lambda_max(F'F), with momentum
        alpha_k = 250 mean_k mean_i f_i.t_k   steps of N / (4 max_k sum_i (f_i.t_k)^2)

    The views of an image are samples, and share its weight in the sum that w starts as. As w starts
    and stays among sums of samples, fewer samples than features are rotated to N axes, in which
    every step is the same.

    Attributes:
        epochs: Steps of w and b.
        momentum: Momentum of these steps; the paper's own have none.
        alpha_gradient: `epoch`: alpha's gradient where it stands; `sum`: the sum of its gradients
            in all epochs so far, as in the authors' code.
    """

    epochs: int = 300
    momentum: float = 0.9
    alpha_gradient: AlphaGradient = "epoch"

    name: ClassVar[str] = "lp++"
    summary: ClassVar[str] = (
        "Straight borders plus a share of what the class names say, found for each class."
    )
    practical_size: ClassVar[PracticalSize] = PracticalSize(
        images=2000, logits=200_000, seconds=0.6
    )
    # Nothing is tuned. On WHU-RS19, digits and EuroSAT at 1 to 8 shots, 300 epochs are within 0.8 %
    # of the best of 1, 3, 10, 30, 100, 200 and 300 wherever training helps at all. Which of them a
    # few held-out images like best is chance: an early stop cost 5.5 % on WHU-RS19 at 2 shots.

    def __post_init__(self) -> None:
        whole(self, "epochs")
        fraction(self, "momentum", below_one=True, hint="0 is none")
        one_of(self, "alpha_gradient", get_args(AlphaGradient))

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return the epoch that is best on few validation images, of one view of each image."""
        return PublishedRecipe(
            settings={"alpha_gradient": "sum"},
            grid={"epochs": tuple(range(1, 301))},
            tune="val",
            views=1,
        )

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Train.

        Raises:
            UserError: There is no text.
        """
        return self._train(support, text, {self.epochs})[self.epochs]

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Train once for all numbers of epochs, and keep the classifier after each of them."""
        stops = set(grid.get("epochs", (self.epochs,)))

        def prepare(fitted: Self) -> Callable[[Self], Tensor]:
            classifiers = fitted._train(support, text, stops)
            return lambda v: classifiers[v.epochs].logits(query)

        return sweep_prepared(self, grid, ("epochs",), prepare)

    @closed_form
    def _train(
        self, support: SupportSet, text: Text | None, stops: set[int]
    ) -> dict[int, LinearClassifier]:
        """The classifier after each of these numbers of epochs."""
        anchors = required(text, self.name)
        features, labels = support.samples()
        hot = one_hot(labels, support.n_classes).to(features)
        cosines = linear(features, anchors)  # (N, C)
        n, dim = features.shape
        axes = torch.linalg.qr(features.double().T)[0].to(features) if n < dim else None
        if axes is not None:
            features = features @ axes  # (N, N)
        columns = features.T.contiguous()
        sums = linear(hot.T, columns)  # (C, D), or (C, N) on the axes
        own = (hot * cosines).sum(dim=0) / hot.sum(dim=0)
        weight = sums / support.n_views
        alpha = (250 * own.mean()).expand(support.n_classes).clone()
        bias = torch.zeros_like(alpha)
        lr = 4 * n / float(torch.linalg.eigvalsh(_gram(features))[-1])
        lr_alpha = n / (4 * float(cosines.square().sum(dim=0).max()))
        weight_step, bias_step = torch.zeros_like(weight), torch.zeros_like(bias)
        gradient = torch.zeros_like(alpha)
        found = {}
        for epoch in range(1, max(stops) + 1):
            logits = torch.addmm(bias, features, weight.T).addcmul_(cosines, alpha)
            error = (torch.softmax(logits, dim=1) - hot) / n
            weight_step = self.momentum * weight_step + (columns @ error).T
            bias_step = self.momentum * bias_step + error.sum(dim=0)
            own_gradient = (error * cosines).sum(dim=0)
            weight, bias = weight - lr * weight_step, bias - lr * bias_step
            gradient = gradient + own_gradient if self.alpha_gradient == "sum" else own_gradient
            if epoch % ALPHA_EVERY == 0:
                alpha = alpha - lr_alpha * gradient
            if epoch in stops:
                stats = {"trained_parameters": float(anchors.numel() + 2 * len(alpha))}
                learned = weight if axes is None else weight @ axes.T
                mixed = learned + alpha[:, None] * anchors
                found[epoch] = LinearClassifier(mixed, bias, stats)
        return found


def _gram(features: Tensor) -> Tensor:
    """F'F or FF', whichever is smaller, in double: the largest eigenvalue is the same."""
    x = features.double()
    return x.T @ x if len(x) >= x.shape[1] else x @ x.T
