"""UEO end to end: words before the class names and norms of the tower, on unlabeled images.

Liang et al., "Realistic Unsupervised CLIP Fine-tuning with Universal Entropy Optimization", ICML
2024, https://arxiv.org/abs/2308.12919; the recipe is that of the authors' code. It computes the
weights from cosines without CLIP's scale, `weight_temperature=1`, at which all are nearly alike;
here, as the paper has it, with the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.optim import SGD, Optimizer

from cache.errors import UserError
from fewshot.checks import non_negative, one_of, positive, whole
from fewshot.endtoend.clip import Clip, EndToEnd, Learner
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.parts.blocks import Towers
from fewshot.endtoend.parts.select import select
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.method import LearnsFrom
from fewshot.parts.universal_entropy import Weighting, image_weights, objective
from fewshot.support import unlabeled
from fewshot.training import cosine_by_step

Trains = Literal["prompt", "norms", "both"]


@dataclass(frozen=True)
class LiveUEO(EndToEnd):
    """Entropy of unlabeled images, minimized or maximized as zero-shot CLIP is sure of them.

    The loss is that of `fit ueo`, of the logits of the prompt [start] context name "." [end].
    Without a step, the model is zero-shot CLIP with that prompt. Norms keep their statistics.

    Attributes:
        learn: The context, a `prompt` that all classes share; scale and shift of the `norms`; or
            `both`. Of a prompt alone, stored features are enough.
        towers: The towers of the norms; published is the image tower.
        ctx_init: Words that the context starts from.
        weighting: Weights of the images: by zero-shot CLIP's certainty (`zero-shot`), or `none`,
            all alike.
        weight_temperature: Temperature of the weights; `model` is the inverse of the logit scale. 1
            is the released code's.
        marginal: Weight of the average's entropy.
        lr: Maximum learning rate; plain SGD, down to 0 along half a cosine.
        epochs: Passes over the images.
        batch_size: Images per step.
        text_chunk: Prompts that go through the tower at a time, 0 for all.
    """

    learn: Trains = "both"
    towers: Towers = "image"
    ctx_init: str = "a photo of a"
    weighting: Weighting = "zero-shot"
    weight_temperature: float | Literal["model"] = "model"
    marginal: float = 1.0
    lr: float = 1e-4
    epochs: int = 50
    batch_size: int = 64
    text_chunk: int = 0

    name: ClassVar[str] = "live-ueo"
    summary: ClassVar[str] = (
        "Adapts the words around your class names and the model itself to photos that nobody has "
        "labeled, some of which may show none of your classes."
    )
    learns_from: ClassVar[LearnsFrom] = "images"
    seeded: ClassVar[bool] = True
    unfoldable: ClassVar[str] = ""

    def __post_init__(self) -> None:
        one_of(self, "learn", get_args(Trains))
        one_of(self, "towers", get_args(Towers))
        one_of(self, "weighting", get_args(Weighting))
        if self.weight_temperature != "model":
            positive(self, "weight_temperature")
        non_negative(self, "marginal", hint="0 leaves the average's entropy out")
        positive(self, "lr")
        whole(self, "epochs", "text_chunk", minimum=0)
        whole(self, "batch_size")
        if not self.ctx_init.strip():
            raise UserError("ctx_init must be words to start from; got none; try 'a photo of a'")

    @property
    def on_images(self) -> bool:
        """Unless the image tower stays as it is."""
        return self.learn != "prompt" and self.towers != "text"

    @property
    def reads_prompts(self) -> bool:
        """Unless the text stays as it is."""
        return self.learn != "norms" or self.towers != "image"

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Train the context, the norms or both; the dataset's templates play no part."""
        prompts = CoOp(ctx_init=self.ctx_init, text_chunk=self.text_chunk).prompts(clip, classnames)
        prompts.context.requires_grad_(self.learn != "norms")
        with torch.no_grad(), clip.autocast():
            zero_shot = prompts.features().float()
        parameters = {} if self.learn == "norms" else {"context": prompts.context}
        if self.learn != "prompt":
            # The authors choose norms by the names bn and ln, which a ResNet's shortcuts have not.
            norms = select(clip.model, self.towers, "norms")
            parameters |= {path: p for path, p in norms.items() if ".downsample." not in path}
        weights = torch.empty(0)

        def survey(features: Tensor) -> None:
            nonlocal weights
            weights = image_weights(
                normalize(unlabeled(features, self.name).float(), dim=-1),
                normalize(zero_shot.cpu(), dim=-1),
                self.weighting,
                self.weight_temperature,
                clip.logit_scale,
            )

        def loss(features: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
            return objective(logits, weights.to(logits.device)[rows], self.marginal).loss

        return Learner(
            parameters,
            clip.logit_scale,
            prompts.features if self.reads_prompts else lambda: zero_shot,
            images=clip.model.encode_image if self.on_images else None,
            objective=loss,
            survey=survey,
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """So many epochs, on crops of half the area or more."""
        return TrainingPlan(
            iterations=self.epochs * math.ceil(n_images / self.batch_size),
            batch_size=self.batch_size,
            schedule=cosine_by_step(self.lr),
            crop_scale=(0.5, 1.0),
        )

    def optimizer(self, learner: Learner) -> Optimizer:
        """Plain SGD on all that is trained."""
        return SGD(learner.parameters.values(), lr=self.lr)
