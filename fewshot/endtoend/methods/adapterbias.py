"""AdapterBias: behind each MLP, before the residual, h + (w . h + b) v.

Fu et al., Findings of NAACL 2022, https://arxiv.org/abs/2205.00305.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position
from fewshot.endtoend.parts.branch import Branch, insert_branches
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import linear


class GatedBias(nn.Module):
    """One vector v for all tokens, times a number of each, (w . x + b) v; v starts at zero."""

    def __init__(self, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.gate = linear(width, 1, generator)
        self.v = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W)."""
        out: Tensor = self.gate(tokens) * self.v
        return out


@dataclass(frozen=True)
class AdapterBias(PEFTMethod):
    """Behind each MLP, before the residual, one vector times a number of each token.

    Attributes:
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    position: Position = "all"

    name: ClassVar[str] = "adapterbias"
    summary: ClassVar[str] = (
        "Adds one learned vector to every block, more or less of it as a photo needs."
    )

    def insert(self, clip: Clip) -> Inserted:
        """A branch behind every MLP."""
        generator = torch.Generator().manual_seed(self.seed)
        return insert_branches(
            self,
            clip,
            lambda width: {"mlp": Branch(GatedBias(width, generator=generator), "after")},
            self.position,
        )
