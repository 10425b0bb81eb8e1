"""A learned context that a small network shifts for every image.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022,
https://arxiv.org/abs/2203.05557; the recipe is that of the authors' code, but in float32 on a CPU
and with float32 parameters everywhere. The prompts are other ones for every image, so classifying
M images runs the text tower M times; what the classes of one image share runs once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.optim import Optimizer

from fewshot.checks import non_negative, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, scaled_cosines
from fewshot.endtoend.parts.dassl import epochs_plan, momentum_sgd, require_context
from fewshot.endtoend.parts.learned_prompts import LearnedPrompts
from fewshot.endtoend.training_plan import TrainingPlan


@dataclass(frozen=True)
class CoCoOp(EndToEnd):
    """The class's text, of an image f, is that of [start] v_1 + h(f) .. v_M + h(f) name "." [end].

    h is linear (D to D / 16), ReLU, linear (to the tower's width W), of the image's unit feature.

    Attributes:
        n_ctx: Context tokens, M.
        ctx_init: Words that the context starts from and which say what M is; empty for normal
            vectors of deviation 0.02.
        reduction: D over the width of the network's hidden layer.
        epochs: Passes over the images.
        lr: Maximum learning rate; SGD with momentum, down along a cosine epoch by epoch.
        weight_decay: Weight decay of SGD.
        batch_size: Images per step.
        text_chunk: Prompts that go through the tower at a time, 0 for all; fewer take less memory
            and a third more work.
        seed: Random seed for the network, and for a context without words.
    """

    n_ctx: int = 4
    ctx_init: str = "a photo of a"
    reduction: int = 16
    epochs: int = 10
    lr: float = 0.002
    weight_decay: float = 5e-4
    batch_size: int = 1
    text_chunk: int = 0
    seed: int = 1

    name: ClassVar[str] = "cocoop"
    summary: ClassVar[str] = (
        "Learns words around your class names that differ from photo to photo. Slow."
    )
    unfoldable: ClassVar[str] = "its class texts are other ones for every image"
    published: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole(self, "n_ctx", "reduction", "epochs", "batch_size")
        whole(self, "text_chunk", minimum=0, hint="0 is all at once")
        positive(self, "lr")
        non_negative(self, "weight_decay")

    @property
    def on_images(self) -> bool:
        """No: the image tower stays as it is."""
        return False

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Context and network are trained; the dataset's templates play no part."""
        prompts = self.prompts(clip, classnames)
        dim, width = int(clip.identity["dim"]), prompts.context.shape[-1]
        drawn = meta_net(dim, max(1, dim // self.reduction), width, seed=self.seed)
        net = {name: nn.Parameter(value.to(prompts.context)) for name, value in drawn.items()}

        def score(features: Tensor) -> Tensor:
            unit = normalize(features.float(), dim=-1)
            hidden = linear(unit, net["meta_net.linear1.weight"], net["meta_net.linear1.bias"])
            shifts = linear(
                hidden.relu(), net["meta_net.linear2.weight"], net["meta_net.linear2.bias"]
            )
            logits = [
                scaled_cosines(clip.logit_scale, image, prompts.features(prompts.context + shift))
                for image, shift in zip(unit[:, None], shifts, strict=True)
            ]
            return torch.cat(logits)

        return Learner(
            {"context": prompts.context, **net}, clip.logit_scale, prompts.features, score=score
        )

    def prompts(self, clip: Clip, classnames: Sequence[str]) -> LearnedPrompts:
        """The classes' prompts, with the context as it is before training."""
        return LearnedPrompts.of(
            clip, classnames, n_ctx=self.n_ctx, ctx_init=self.ctx_init, seed=self.seed,
            chunk=self.text_chunk,
        )  # fmt: skip

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """Ten epochs at any shots, each without its last batch if that is not full.

        Raises:
            UserError: Another number of context tokens than of words that they start from.
        """
        require_context(self.n_ctx, type(self).n_ctx, self.ctx_init)
        return epochs_plan(self.epochs, n_images, self.batch_size, self.lr)

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return momentum_sgd(learner, self.lr, self.weight_decay)


def meta_net(dim: int, hidden: int, width: int, *, seed: int) -> dict[str, Tensor]:
    """Weights and biases of the network, as torch draws a linear layer's: U(-1, 1) / sqrt(inputs).

    Their names are those of the authors' code.
    """
    generator = torch.Generator().manual_seed(seed)
    net = {}
    for name, n_in, n_out in (("linear1", dim, hidden), ("linear2", hidden, width)):
        for part, shape in (("weight", (n_out, n_in)), ("bias", (n_out,))):
            drawn = torch.rand(*shape, generator=generator)
            net[f"meta_net.{name}.{part}"] = (2 * drawn - 1) / n_in**0.5
    return net
