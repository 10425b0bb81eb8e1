"""ZS-LP: class prototypes that start as the text, trained on the images alone.

The baseline of Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2024, https://arxiv.org/abs/2312.12730; `clap` is this with a
penalty. The authors draw each epoch's batches from 20 views of every image at once; here an epoch
is one view of every image, which makes as many steps. Where there are fewer images than a batch
holds, theirs is filled with further views, ours is smaller.
"""

from dataclasses import dataclass
from typing import ClassVar

from fewshot.checks import positive, whole
from fewshot.classifier import LinearClassifier
from fewshot.method import Method, PracticalSize
from fewshot.parts.prototypes import learn_prototypes, raw_text
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet
from fewshot.text import Text, required


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
        seed: Random seed for the batches.
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
