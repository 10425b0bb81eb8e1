"""Prefix tuning: learned keys and values in every attention of a frozen image tower.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021,
https://arxiv.org/abs/2101.00190. It does not start as zero-shot CLIP and cannot: an attention that
looks at more keys looks less at the image's, whatever the keys are.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewshot.checks import whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import PLACES, Position, blocks_of
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, image_vit


class Prefixed(nn.Module):
    """A projection to keys or values, of tokens (B, L, W), with l learned ones in front.

    Attributes:
        prefix: (l, W).
        plain: The projection.
    """

    def __init__(self, plain: nn.Module, prefix: Tensor) -> None:
        super().__init__()
        self.prefix = nn.Parameter(prefix)
        self.plain = plain

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, l + L, W)."""
        projected: Tensor = self.plain(tokens)
        prefix = self.prefix.to(projected.dtype).expand(len(tokens), -1, -1)
        return torch.cat([prefix, projected], dim=1)


@dataclass(frozen=True)
class Prefix(PEFTMethod):
    """Learned keys P_k and values P_v in every attention: softmax(Q [P_k; K]^T) [P_v; V].

    Without the reparametrisation of the language models' prefix, which is lost after training.

    Attributes:
        n_tokens: l.
        position: Which blocks, counted from the input.
    """

    n_tokens: int = 10
    position: Position = "all"

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = (
        "Gives every block of the model learned tokens to compare a photo with."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "n_tokens")

    def insert(self, clip: Clip) -> Inserted:
        """Normal keys and values of deviation 0.02."""
        blocks = image_vit(clip, self.name).transformer.resblocks
        generator = torch.Generator().manual_seed(self.seed)
        parameters = {}
        for i in blocks_of(self.position, len(blocks)):
            attention = blocks[i].attn
            for matrix in ("k_proj", "v_proj"):
                width = attention.q_proj.weight.shape[1]
                drawn = torch.empty(self.n_tokens, width).normal_(std=0.02, generator=generator)
                prefixed = Prefixed(getattr(attention, matrix), drawn.to(clip.device))
                setattr(attention, matrix, prefixed)
                parameters[f"{PLACES['image'][0]}.{i}.attn.{matrix}.prefix"] = prefixed.prefix
        return parameters, ()
