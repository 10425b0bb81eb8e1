"""Houlsby's adapter: h + up(GELU(down(h))) behind attention and MLP, before the residual.

Houlsby et al., ICML 2019, https://arxiv.org/abs/1902.00751. To start as zero-shot CLIP the second
layer, drawn near zero in the paper, is zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fewshot.checks import whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position
from fewshot.endtoend.parts.branch import (
    Bottleneck,
    Branch,
    Half,
    insert_branches,
)
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod


@dataclass(frozen=True)
class Houlsby(PEFTMethod):
    """A bottleneck behind each attention and each MLP.

    Attributes:
        dim: Width of the bottleneck.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    dim: int = 64
    position: Position = "all"

    name: ClassVar[str] = "houlsby-adapter"
    summary: ClassVar[str] = "Adds two small networks to every block of the model."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "dim")

    def insert(self, clip: Clip) -> Inserted:
        """A branch behind both halves."""
        generator = torch.Generator().manual_seed(self.seed)

        def make(width: int) -> dict[Half, Branch]:
            def core() -> nn.Module:
                return Bottleneck(width, self.dim, activation=nn.GELU(), generator=generator)

            return {"attn": Branch(core(), "after"), "mlp": Branch(core(), "after")}

        return insert_branches(self, clip, make, self.position)
