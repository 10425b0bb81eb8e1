"""Several contexts, matched with the regions of an image by optimal transport.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023,
https://arxiv.org/abs/2210.01253; the recipe is that of the authors' code. That is for ResNets
alone, whose regions are the outputs of the attention pool at the places of its grid. Of a vision
transformer, for which the paper has no recipe of its own, here they are the patch tokens, through
the last norm and the projection. The code stops Sinkhorn's iteration by the mean over a batch, here
each image by its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from fewshot.checks import non_negative, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.parts.dassl import epochs_plan, momentum_sgd
from fewshot.endtoend.parts.learned_prompts import LearnedPrompts
from fewshot.endtoend.parts.regions import regions_of
from fewshot.endtoend.parts.transport import drawn, similarity
from fewshot.endtoend.training_plan import TrainingPlan


@dataclass(frozen=True)
class PLOT(EndToEnd):
    """N contexts of l learned vectors each; logits are transported similarities.

    With regions f_m of an image and prompts t_n of class k, all of unit length, and T the plan of
    optimal transport between them, regularized by its entropy,

        logit_k = logit_scale sum_mn T_mn f_m.t_n.

    Attributes:
        n_prompts: Contexts, N.
        n_ctx: Tokens of each context, l.
        epochs: Passes over the images.
        lr: Maximum learning rate; SGD with momentum, down along a cosine epoch by epoch.
        weight_decay: Weight decay of SGD.
        batch_size: Images per step.
        text_chunk: Prompts that go through the tower at a time, 0 for all; fewer take less memory
            and a third more work.
        seed: Random seed for the contexts.
    """

    n_prompts: int = 4
    n_ctx: int = 16
    epochs: int = 50
    lr: float = 0.002
    weight_decay: float = 5e-4
    batch_size: int = 32
    text_chunk: int = 0
    seed: int = 1

    name: ClassVar[str] = "plot"
    summary: ClassVar[str] = "Learns several sentences per class and matches them with image parts."
    published: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole(self, "n_prompts", "n_ctx", "epochs", "batch_size")
        whole(self, "text_chunk", minimum=0, hint="0 is all at once")
        positive(self, "lr")
        non_negative(self, "weight_decay")

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The contexts are all that is trained; the dataset's templates play no part."""
        one = LearnedPrompts.of(
            clip, classnames, n_ctx=self.n_ctx, ctx_init="", seed=self.seed, chunk=self.text_chunk
        )
        prompts = drawn(one, self.n_prompts, self.seed)
        regions = regions_of(clip, self.name)

        def images(pixels: Tensor) -> Tensor:
            with torch.no_grad():  # the tower is frozen
                return regions(pixels)

        return Learner(
            prompts.parameters,
            clip.logit_scale,
            prompts.features,
            images=images,
            compare=lambda images, text: clip.logit_scale * similarity(images, text),
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """So many epochs at any shots, each without its last batch if that is not full."""
        return epochs_plan(self.epochs, n_images, self.batch_size, self.lr)

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return momentum_sgd(learner, self.lr, self.weight_decay)
