"""AdaptFormer: beside each MLP a bottleneck, x + mlp(LN(x)) + s up(ReLU(down(x))).

Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.13535. The bottleneck's x is not normalized.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fewshot.checks import fraction, positive, whole
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
class AdaptFormer(PEFTMethod):
    """A bottleneck beside each MLP.

    Attributes:
        dim: Width of the bottleneck; published: 64, and 8 in benchmarks of many methods.
        scale: Scale of the addition, s.
        learned_scale: Train s as well.
        dropout: Dropout behind the ReLU.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    dim: int = 64
    scale: float = 0.1
    learned_scale: bool = False
    dropout: float = 0.1
    position: Position = "all"

    name: ClassVar[str] = "adaptformer"
    summary: ClassVar[str] = "Adds a small network to every block of the model."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "dim")
        positive(self, "scale")
        fraction(self, "dropout", below_one=True)

    def insert(self, clip: Clip) -> Inserted:
        """A branch parallel to every MLP."""
        generator = torch.Generator().manual_seed(self.seed)

        def make(width: int) -> dict[Half, Branch]:
            core = Bottleneck(
                width, self.dim, activation=nn.ReLU(), dropout=self.dropout, generator=generator
            )
            return {
                "mlp": Branch(
                    core,
                    "parallel",
                    normed=False,
                    scale=self.scale,
                    learned_scale=self.learned_scale,
                )
            }

        return insert_branches(self, clip, make, self.position)
