"""U-Tuning: a frozen operation plus a small tuner of the same input, OP(x) + s tuner(x).

Jiang et al., "Rethinking Efficient Tuning Methods from a Unified Perspective", 2023,
https://arxiv.org/abs/2303.00690. The operation is attention, the MLP, both, or a whole block; the
tuner is a bottleneck, the paper's adapter form.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import nn

from fewshot.checks import one_of, positive, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position
from fewshot.endtoend.parts.branch import Bottleneck, Branch, Half, insert_branches
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod

Operation = Literal["both", "attn", "mlp", "block"]


@dataclass(frozen=True)
class UTuning(PEFTMethod):
    """A bottleneck in parallel to parts of each block.

    Attributes:
        operation: Place of the bottlenecks: beside attention (`attn`), the MLP (`mlp`), both of
            them (`both`), or whole blocks (`block`).
        dim: Width of the bottleneck.
        scale: Scale of the addition, s.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    operation: Operation = "both"
    dim: int = 64
    scale: float = 1.0
    position: Position = "all"

    name: ClassVar[str] = "u-tuning"
    summary: ClassVar[str] = "Adds small networks beside each part of every block of the model."

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "operation", get_args(Operation))
        whole(self, "dim")
        positive(self, "scale")

    def insert(self, clip: Clip) -> Inserted:
        """A branch parallel to each operation, of the operation's input."""
        generator = torch.Generator().manual_seed(self.seed)
        places: tuple[Half, ...] = (
            ("attn", "mlp") if self.operation == "both" else (self.operation,)
        )

        def make(width: int) -> dict[Half, Branch]:
            def tuner() -> nn.Module:
                return Bottleneck(width, self.dim, activation=nn.GELU(), generator=generator)

            return {place: Branch(tuner(), "parallel", scale=self.scale) for place in places}

        return insert_branches(self, clip, make, self.position)
