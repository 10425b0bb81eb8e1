"""Deep prompts in both towers that are held near the frozen model and averaged over the epochs.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV
2023, https://arxiv.org/abs/2307.06948; recipe and losses are those of the authors' code for few
shots, which made the numbers. Its L1 distances are means over the D features, and its divergence,
of the frozen model's probabilities from the prompted ones, is divided by the number of classes too.
The code averages features of the templates as they are, here each is normalized first. Its Gaussian
is (30, 30) on ImageNet, Caltech101, OxfordPets, Food101, UCF101 and SUN397, the defaults here, and
(45, 5) on the others.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, l1_loss, normalize

from cache.errors import UserError, count
from fewshot.checks import non_negative, positive
from fewshot.endtoend.clip import Clip, Learner, scaled_cosines
from fewshot.endtoend.parts.deep_prompts import DeepPrompts, image_width, prompt_images
from fewshot.endtoend.parts.diverse_templates import DIVERSE_TEMPLATES
from fewshot.endtoend.parts.peft import class_text
from fewshot.endtoend.training_plan import TrainingPlan


@dataclass(frozen=True)
class PromptSRC(DeepPrompts):
    """Minimizes CE + a |f - f0| + b |t - t0| + KL(frozen || prompted).

    f and t are the unit image and text features, f0 and t0 those of the frozen model, t0 of 60
    templates. |.| is the mean absolute entry; of the divergence, too, it is the mean over images
    and classes. The final prompts are a mean over the epochs, whose weights are a Gaussian's.

    Attributes:
        image_weight: Weight of the image features' distance, a.
        text_weight: Weight of the text features' distance, b.
        gpa_mean: Epoch of the highest weight, counted from 1.
        gpa_std: Deviation of the weights, in epochs.
    """

    image_weight: float = 10.0
    text_weight: float = 25.0
    gpa_mean: float = 30.0
    gpa_std: float = 30.0

    name: ClassVar[str] = "promptsrc"
    summary: ClassVar[str] = (
        "Learns words and photo tokens in many layers, held near what the model knows."
    )
    published: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        non_negative(self, "image_weight", hint="the paper's is 10")
        non_negative(self, "text_weight", hint="the paper's is 25")
        positive(self, "gpa_mean", "gpa_std")

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The prompts of both towers are trained; the dataset's templates play no part."""
        text_depth, image_depth = self.depths(clip)
        known = class_text(clip, classnames, DIVERSE_TEMPLATES)
        # The model without prompts, of the same weights in memory.
        frozen = copy.deepcopy(clip.model, {id(p): p for p in clip.model.parameters()})
        generator = torch.Generator().manual_seed(self.seed)
        text = self.prompt_text(clip, classnames, text_depth, generator)
        n_ctx = len(text.context)
        tokens = nn.Parameter(self.drawn(clip, (image_depth, n_ctx, image_width(clip)), generator))
        prompt_images(clip, image_depth, n_ctx, lambda block: tokens[block], [tokens])

        def images(pixels: Tensor) -> Tensor:
            features: Tensor = clip.model.encode_image(pixels)
            if not torch.is_grad_enabled():
                return features
            with torch.no_grad():
                without = frozen.encode_image(pixels)
            return torch.cat([features, without], dim=1)

        def objective(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
            prompted, without = features.float().chunk(2, dim=1)
            distance = l1_loss(normalize(prompted, dim=1), normalize(without, dim=1))
            zero_shot = scaled_cosines(clip.logit_scale, without, known)
            divergence = kl_div(
                logits.log_softmax(1), zero_shot.log_softmax(1), reduction="none", log_target=True
            )
            loss = cross_entropy(logits, labels) + self.image_weight * distance
            return loss + divergence.mean()

        def penalty(features: Tensor) -> Tensor:
            return self.text_weight * l1_loss(normalize(features.float(), dim=1), known)

        return Learner(
            {"context": text.context, "text_prompts": text.deeper, "image_prompts": tokens},
            clip.logit_scale,
            text.features,
            images=images,
            objective=objective,
            penalty=penalty,
        )

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        """DeepPrompts' steps, and the epochs' Gaussian weights, of sum 1.

        Raises:
            UserError: All weights vanish, or what DeepPrompts objects to.
        """
        weights = [
            math.exp(-0.5 * ((epoch - self.gpa_mean) / self.gpa_std) ** 2)
            for epoch in range(1, self.epochs + 1)
        ]
        if not sum(weights):
            raise UserError(
                f"gpa_std must let one of {count(self.epochs, 'epoch')} count, the highest at "
                f"gpa_mean, {self.gpa_mean:g}; got {self.gpa_std:g}; use a larger one"
            )
        shares = [weight / sum(weights) for weight in weights]
        return replace(super().plan(shots, n_images), epoch_shares=shares)
