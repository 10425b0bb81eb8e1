"""ZS-LP: class prototypes that start as the text, trained on the images alone.

The baseline of Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2024, https://arxiv.org/abs/2312.12730; `clap` is this with a
penalty. The authors draw each epoch's batches from 20 views of every image at once; here an epoch
is one view of every image, which makes as many steps. Where there are fewer images than a batch
holds, theirs is filled with further views, ours is smaller.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.checks import positive, whole
from fewshot.classifier import LinearClassifier
from fewshot.method import Method, PracticalSize
from fewshot.parts.optimizers import SGD
from fewshot.parts.softmax_heads import across, cosine_gradient
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet
from fewshot.text import Text, required
from fewshot.threads import closed_form
from fewshot.training import batches, cosine_by_epoch

TYPICAL_NORM = 10.0  # of what CLIP's text tower puts out, about 7 to 11


@dataclass(frozen=True)
class ZSLP(Method):
    """Logits logit_scale f.w_k / |w_k|, with prototypes w_k trained from the text t_k.

    t_k is the mean of the text embeddings as the encoder gave them, and the step size depends on
    its norm. Where that is about one, as in features imported normalized, it is taken times ten.

    Attributes:
        lr: Learning rate of SGD with momentum 0.9; Dassl's cosine after a warm-up epoch.
        epochs: Passes over the images.
        batch_size: Images per step; an epoch's last batch is left out where it is not full.
        logit_scale: CLIP's inverse temperature.
        seed: Of the batches.
    """

    lr: float = 0.1
    epochs: int = 300
    batch_size: int = 256
    logit_scale: float = 100.0
    seed: int = 1

    name: ClassVar[str] = "zs-lp"
    summary: ClassVar[str] = (
        "Starts with the class names as the classes' middles and trains them on your photos."
    )
    practical_size: ClassVar[PracticalSize] = PracticalSize(images=500, logits=10_000, seconds=0.9)
    text_recipe: ClassVar[str] = "raw-mean"

    def __post_init__(self) -> None:
        positive(self, "lr")
        whole(self, "epochs", "batch_size")

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return the defaults, which nothing tunes, on twenty views of each image."""
        return PublishedRecipe(views=20)

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        """Train the prototypes.

        Raises:
            UserError: There is no text.
        """
        start = raw_text(required(text, self.name))
        weights = start.new_zeros(len(start))
        return learn_prototypes(
            support,
            start,
            weights,
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            logit_scale=self.logit_scale,
            seed=self.seed,
        )


def raw_text(features: Tensor) -> Tensor:
    """(C, D) text features as the encoder may have given them, where they were normalized."""
    return TYPICAL_NORM * features if float(features.norm(dim=1).mean()) < 2 else features


@closed_form
def learn_prototypes(
    support: SupportSet,
    start: Tensor,
    weights: Tensor,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    logit_scale: float,
    seed: int,
) -> LinearClassifier:
    """Prototypes trained by cross-entropy + mean_k lambda_k |w_k - t_k|^2.

    Its gradient in w_k is that of the cross-entropy and 2 lambda_k (w_k - t_k) / C.

    Args:
        support: The images.
        start: (C, D) t, where the prototypes begin and are held.
        weights: (C,) lambda.
        lr: As `ZSLP`'s, like the rest.
        epochs: Passes over the images.
        batch_size: Images per step.
        logit_scale: CLIP's inverse temperature.
        seed: Of the batches.
    """
    trained = SGD(start, momentum=0.9)
    (w,), (gradient,) = trained.values, trained.gradients
    pull = 2 / len(start) * weights[:, None] if weights.any() else None
    for f, labels, _, _, rate in batches(
        support,
        cosine_by_epoch(lr, epochs),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        drop_last=True,
    ):
        torch.mm(cosine_gradient(f, w, labels, logit_scale).T, f, out=gradient)
        across(gradient, w)
        if pull is not None:
            gradient.addcmul_(pull, w - start)
        trained.step(rate)
    stats = {
        "trained_parameters": trained.count,
        "residual_size": float(((w - start).norm(dim=1) / start.norm(dim=1)).mean()),
    }
    return LinearClassifier(logit_scale * normalize(w), stats=stats)
