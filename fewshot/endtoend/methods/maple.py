"""Deep prompts in the text tower, and linear maps of them in the image tower.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, https://arxiv.org/abs/2210.03117;
the recipe is that of the authors' code for base and new classes at 16 shots. The paper learns two
context tokens that start as "a photo of a"; in the code they start as "a photo", and "of a" stays
as it is between them and the name. Here it is the code's. The code's maps have the sizes of
ViT-B/16, here those of the towers; both towers have prompts at as many blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.deep_prompts import DeepPrompts, image_width, prompt_images


@dataclass(frozen=True)
class MaPLe(DeepPrompts):
    """Prompts P_i at block i of the text tower, and W_i P_i + b_i at block i of the image tower."""

    n_ctx: int = 2
    epochs: int = 5
    lr: float = 0.0035

    name: ClassVar[str] = "maple"
    summary: ClassVar[str] = (
        "Learns words in many layers and, from the words, tokens beside each photo."
    )
    published: ClassVar[bool] = True

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Prompts and maps are trained; the dataset's templates play no part."""
        depth = min(self.depths(clip))
        generator = torch.Generator().manual_seed(self.seed)
        text = self.prompt_text(clip, classnames, depth, generator)
        maps = coupling(depth, text.context.shape[1], image_width(clip), generator)
        weight, bias = (nn.Parameter(part.to(clip.device)) for part in maps)

        def prompt(block: int) -> Tensor:
            tokens = text.deeper[block - 1] if block else text.context
            return linear(tokens, weight[block], bias[block])

        learned = [text.context, text.deeper, weight, bias]
        prompt_images(clip, depth, len(text.context), prompt, learned)
        return Learner(
            {
                "context": text.context,
                "text_prompts": text.deeper,
                "coupling.weight": weight,
                "coupling.bias": bias,
            },
            clip.logit_scale,
            text.features,
            images=clip.model.encode_image,
        )


def coupling(
    depth: int, n_in: int, n_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights (d, n_out, n_in) and biases (d, n_out), U(-1, 1) / sqrt(n_in).

    The first map has a draw of its own; the others start alike, as in the authors' code.
    """
    alike = torch.arange(depth).clamp(max=1)
    weight = torch.rand(2, n_out, n_in, generator=generator)
    bias = torch.rand(2, n_out, generator=generator)
    return (2 * weight[alike] - 1) / n_in**0.5, (2 * bias[alike] - 1) / n_in**0.5
