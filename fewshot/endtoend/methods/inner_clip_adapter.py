"""CLIP-Adapter inside a tower, behind one block: (1 - ratio) x + ratio ReLU(W2 ReLU(W1 x)).

Gao et al., IJCV 2024, https://arxiv.org/abs/2110.04544, Table 2. Not zero-shot CLIP at first, as
CLIP-Adapter behind the tower is not.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import fraction, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import blocks_path
from fewshot.endtoend.parts.branch import Branch, Half, insert_branches
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear


class Exchange(nn.Module):
    """A(x) - x, so that x + s (A(x) - x) mixes x with CLIP-Adapter's network A."""

    def __init__(self, width: int, reduction: int, generator: torch.Generator) -> None:
        super().__init__()
        dim = max(1, width // reduction)
        self.down = linear(width, dim, generator, bias=False)
        self.up = linear(dim, width, generator, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W)."""
        out: Tensor = self.up(self.down(tokens).relu()).relu() - tokens
        return out


@dataclass(frozen=True)
class InnerCLIPAdapter(PEFTMethod):
    """CLIP-Adapter's network behind one block.

    Attributes:
        block: Block behind which it is, counted from 1; 0 for the last.
        ratio: Share of the adapter.
        reduction: How many times narrower than the tokens its middle is.
    """

    block: int = 0
    ratio: float = 0.2
    reduction: int = 4

    name: ClassVar[str] = "inner-clip-adapter"
    summary: ClassVar[str] = "Adds one small network near the end of the model."

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "block", minimum=0, hint="0 is the last")
        whole(self, "reduction")
        fraction(self, "ratio")

    def insert(self, clip: Clip) -> Inserted:
        """A branch on the stream behind one block."""
        depth = len(clip.model.get_submodule(blocks_path(clip.model, "image", self.name)))
        if self.block > depth:
            raise UserError(f"block must be at most the tower's last, {depth}; got {self.block}")
        chosen = (self.block or depth) - 1
        generator = torch.Generator().manual_seed(self.seed)

        def make(width: int) -> dict[Half, Branch]:
            return {
                "mlp": Branch(
                    Exchange(width, self.reduction, generator), "stream", scale=self.ratio
                )
            }

        return insert_branches(self, clip, make, chosen)
