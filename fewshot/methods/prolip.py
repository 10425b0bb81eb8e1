"""ProLIP: the image tower's last projection, fine-tuned near where it was.

Fahes et al., "CLIP's Visual Embedding Projector is a Few-shot Cornucopia",
https://arxiv.org/abs/2410.05270, by the authors' code. The paper calls its variant on features that
are projected already the regularized linear adapter. Differs from the code: all is in float32,
where theirs is in float16; an image comes by as many views as are stored, where theirs has 300; and
a ResNet, of which no store holds images from before the projection, has the adapter alone.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.checks import non_negative, one_of, positive, whole
from fewshot.classifier import Classifier
from fewshot.method import Grid, Method, PracticalSize
from fewshot.parts.optimizers import Adam
from fewshot.parts.projected import PooledClassifier, ProjectedClassifier
from fewshot.parts.softmax_heads import TINY, across, logit_gradient
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet, labeled
from fewshot.text import Text, required
from fewshot.threads import closed_form
from fewshot.training import cosine_by_step, views_of

Space = Literal["auto", "pre-projection", "features"]
Penalty = Literal["1/K", "1/K^2"] | float

EPS = 1e-4  # of Adam; the authors' weights are of half precision, where 1e-8 would be 0


@dataclass(frozen=True)
class ProLIP(Method):
    """Zero-shot CLIP with another last projection of images.

    With an image x as the projection takes it, and unit class text t_k,

        logit_k(x) = logit_scale xP.t_k / |xP|,

    and P minimizes cross-entropy + penalty |P - P_0|^2, the sum over all entries, from CLIP's own
    projection P_0, by Adam on all images at once. Of projected features, P_0 is the identity.

    Attributes:
        space: Images that it learns from: those before the projection (`pre-projection`), or
            `features`, which are behind it; `auto` takes the former where the store has them.
        penalty: Weight of that sum; K is the mean number of images of a class.
        lr: Learning rate, down to 0 along a cosine.
        epochs: Steps, each on another view of all images.
        logit_scale: CLIP's inverse temperature.
    """

    space: Space = "auto"
    # On four datasets 1/K^2 is as good as 1/K or better, at 2 to 16 shots and lr 1e-4 to 1e-2.
    # 0.01 and 0.001 are mostly better still; without a penalty one shot falls below zero-shot.
    penalty: Penalty = "1/K^2"
    lr: float = 1e-3
    epochs: int = 300
    logit_scale: float = 100.0

    name: ClassVar[str] = "prolip"
    summary: ClassVar[str] = "Retrains the last layer of the image model, held near what it was."
    blends: ClassVar[bool] = False  # pooled images have no cosine to text
    saved_as: ClassVar[tuple[type, ...]] = (ProjectedClassifier, PooledClassifier)
    practical_size: ClassVar[PracticalSize] = PracticalSize(images=50, seconds=60.0)
    grid: ClassVar[Grid] = {"penalty": ("1/K^2", 0.01, 0.001)}

    def __post_init__(self) -> None:
        one_of(self, "space", get_args(Space))
        non_negative(self, "penalty", words=("1/K", "1/K^2"), hint="0 is none")
        positive(self, "lr")
        whole(self, "epochs", minimum=0)

    @property
    def reads_pooled(self) -> bool:
        """True where that is settled; `auto` is not, and takes the support set as it is."""
        return self.space == "pre-projection"

    def on_store(self, *, pooled: bool) -> Self:
        """Return the method with `auto` replaced by what the store has."""
        if self.space != "auto":
            return self
        return replace(self, space="pre-projection" if pooled else "features")

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return the validation-free recipe: lr 1e-5, on augmented views; ten stand for 300."""
        return PublishedRecipe(settings={"lr": 1e-5, "penalty": "1/K"}, views=10)

    def fit(self, support: SupportSet, text: Text | None) -> Classifier:
        """Tune the projection.

        Raises:
            UserError: There is no text, or the support set is not of the space asked for.
        """
        t = required(text, self.name)
        return self._classifier(support, self._tuned(support, t), t)

    def fit_new_classes(
        self, support: SupportSet | None, text: Text | None, new: Text
    ) -> Classifier:
        """Use the projection tuned on the base classes, with the new classes' text.

        Raises:
            UserError: As `fit`.
        """
        support = labeled(support, self.name)
        tuned = self._tuned(support, required(text, self.name))
        return self._classifier(support, tuned, required(new, self.name))

    @closed_form
    def _tuned(self, support: SupportSet, t: Tensor) -> Tensor:
        """P, (W, D)."""
        views, labels, tower = views_of(support), support.labels, support.tower
        if tower is not None:
            views = torch.from_numpy(tower.before_projection(views.numpy()))
            start = torch.from_numpy(tower.projection)
        elif self.reads_pooled:
            raise UserError(
                f"{self.name} with space pre-projection learns from pooled images and got "
                "features; extract the store with --pre-projection, or use space features"
            )
        else:
            start = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
        trained = Adam(start, weight_decay=0.0, decoupled=False, eps=EPS)
        (p,), (gradient,) = trained.values, trained.gradients
        weight, schedule = self.logit_scale * t, cosine_by_step(self.lr)
        pull = 2 * self._penalty(support)
        for epoch in range(self.epochs):
            x = views[epoch % len(views)]
            z = x @ p  # (N, D)
            norms = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(TINY)
            of_unit = logit_gradient((z / norms) @ weight.T, labels) @ weight
            torch.mm(x.T, across(of_unit.div_(norms), z), out=gradient)
            gradient.add_(p - start, alpha=pull)
            trained.step(schedule(epoch, epoch / self.epochs))
        return p

    def _penalty(self, support: SupportSet) -> float:
        """As a number."""
        k = len(support.labels) / support.n_classes
        named = {"1/K": 1 / k, "1/K^2": 1 / k**2}
        return named[self.penalty] if isinstance(self.penalty, str) else self.penalty

    def _classifier(self, support: SupportSet, tuned: Tensor, t: Tensor) -> Classifier:
        tower, weight = support.tower, self.logit_scale * t
        stats = {
            "trained_parameters": float(tuned.numel()),
            "pre_projection": float(tower is not None),
        }
        if tower is None:
            return ProjectedClassifier(tuned, weight, stats)
        scale, shift = (torch.from_numpy(part) for part in (tower.scale, tower.shift))
        return PooledClassifier(scale, shift, tuned, weight, stats)
