"""CLAP: class prototypes trained from the text, each held near it as far as it deserves.

Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models",
CVPR 2024, https://arxiv.org/abs/2312.12730. As the published command runs it: multipliers
estimated once, from the zero-shot probabilities, with no outer steps of the augmented Lagrangian,
and the penalty a mean over the classes, where the paper writes a sum. Of epochs and views the same
holds as for `zs-lp`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from fewshot.checks import non_negative, positive, whole
from fewshot.classifier import LinearClassifier
from fewshot.method import Method, PracticalSize
from fewshot.parts.gaussian import class_means
from fewshot.parts.prototypes import learn_prototypes, raw_text
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet
from fewshot.text import Text, required


@dataclass(frozen=True)
class CLAP(Method):
    """Logits logit_scale f.w_k / |w_k|, with prototypes w_k trained from the text t_k.

    The loss is

        cross-entropy + penalty mean_k lambda_k |w_k - t_k|^2,

    lambda_k being the probability that zero-shot CLIP gives the right class, averaged over the
    images and views of class k: the better the text of a class works, the closer to it it stays.
    t_k is as `zs-lp` has it.

    Attributes:
        penalty: Weight of the penalty, 1 as published; 0 is ZS-LP.
        lr: Learning rate of SGD with momentum 0.9; Dassl's cosine after a warm-up epoch.
        epochs: Passes over the images.
        batch_size: Images per step; an epoch's last batch is left out where it is not full.
        logit_scale: CLIP's inverse temperature.
        seed: Random seed for the batches.
    """

    penalty: float = 1.0
    lr: float = 0.1
    epochs: int = 300
    batch_size: int = 256
    logit_scale: float = 100.0
    seed: int = 1

    name: ClassVar[str] = "clap"
    summary: ClassVar[str] = (
        "As zs-lp, holding each class near its name as far as the name deserves it."
    )
    practical_size: ClassVar[PracticalSize] = PracticalSize(images=500, logits=10_000, seconds=1.0)
    text_recipe: ClassVar[str] = "raw-mean"

    def __post_init__(self) -> None:
        non_negative(self, "penalty", hint="0 is zs-lp")
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
        return learn_prototypes(
            support,
            start,
            self.penalty * self._multipliers(support, start),
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            logit_scale=self.logit_scale,
            seed=self.seed,
        )

    def _multipliers(self, support: SupportSet, start: Tensor) -> Tensor:
        """(C,) lambda."""
        features, labels = support.samples()
        parts = zip(torch.split(features, 8192), torch.split(labels, 8192), strict=True)
        weight = self.logit_scale * normalize(start)
        own = [torch.softmax(linear(x, weight), 1).gather(1, y[:, None]) for x, y in parts]
        return class_means(torch.cat(own), labels, support.n_classes).flatten()
