"""A learned context that takes no step against what zero-shot CLIP knows.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023,
https://arxiv.org/abs/2205.14865; the recipe is that of the authors' code, lambda = 1 on every
dataset (theirs is 0.8 on Flowers102, DTD and EuroSAT from 8 shots on). Zero-shot CLIP has here the
dataset's own prompts, or the mean of several; they reword some, so that the name comes last, and
take "a photo of a" for ImageNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from fewshot.checks import non_negative, positive
from fewshot.endtoend.clip import Clip, Learner, scaled_cosines
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.parts.peft import class_text

RAISED = 1024.0  # a power of two, so exact; small gradients would vanish in float16


@dataclass(frozen=True)
class ProGrad(CoOp):
    """CoOp that goes down g - lambda min(<g, k>, 0) k / <k, k> instead of g.

    g is the gradient of the cross-entropy and k that of the divergence from zero-shot CLIP. Where
    the two conflict, what of g goes against k is taken off it; lambda = 1 takes all of it.

    The fields are CoOp's and two more; but the context starts from words in any case.

    Attributes:
        ctx_init: The words, last of the M vectors, with zeros before them if they are fewer; empty
            for those of the dataset's first prompt, what follows the name there put first.
        weight: Weight of the divergence's gradient, lambda; 0 is CoOp from these words.
        temperature: T of both softmaxes of the divergence.
    """

    weight: float = 1.0
    temperature: float = 1.0

    name: ClassVar[str] = "prograd"
    summary: ClassVar[str] = "As coop, without steps against what the model knows already."
    published: ClassVar[bool] = True
    pads_words: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        non_negative(self, "weight", hint="the paper's is 1")
        positive(self, "temperature", hint="the paper's is 1")

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """The context is all that is trained; the dataset's templates are zero-shot CLIP's."""
        worded = replace(self, ctx_init=self.ctx_init or words_before(templates[0]))
        prompts = worded.prompts(clip, classnames)
        missing = max(0, self.n_ctx - prompts.context.shape[-2])
        context = nn.Parameter(pad(prompts.context.detach(), (0, 0, missing, 0)))
        prompts = replace(prompts, context=context)
        zero_shot = class_text(clip, classnames, templates)

        def objective(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
            target = scaled_cosines(clip.logit_scale, features, zero_shot)
            return self._projected(logits, labels, target, context)

        return Learner(
            {"context": context}, clip.logit_scale, prompts.features, objective=objective
        )

    def _projected(
        self, logits: Tensor, labels: Tensor, zero_shot: Tensor, context: nn.Parameter
    ) -> Tensor:
        """The value of the cross-entropy, with the projected gradient in the context."""
        T = self.temperature
        loss = cross_entropy(logits, labels)
        # The divergence but for its constant, and for a factor T^2: k is used for its direction.
        divergence = cross_entropy(logits / T, (zero_shot / T).softmax(dim=1))
        [g] = torch.autograd.grad(RAISED * loss, context, retain_graph=True)
        [k] = torch.autograd.grad(RAISED * divergence, context)
        g, k = g / RAISED, k / RAISED
        # Sums, not products of vectors: those autocast would round.
        dot, square = (g * k).sum(), (k * k).sum()
        against = dot.clamp(max=0) / square.clamp(min=torch.finfo(k.dtype).tiny)
        projected = g - self.weight * against * k
        # A scalar that is linear in the context has just that gradient; its own value is taken off.
        carrier = (projected * context).sum()
        return loss.detach() + carrier - carrier.detach()


def words_before(template: str) -> str:
    """The words of a prompt besides the name, to stand before it.

    "a photo of a {}, a type of pet." makes "a type of pet, a photo of a".
    """
    before, _, after = (part.strip(" ,.") for part in template.partition("{}"))
    return ", ".join(part for part in (after, before) if part)
