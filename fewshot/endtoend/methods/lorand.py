"""LoRand: Houlsby's adapter whose two matrices are sums of products of three small ones.

Yin et al., "1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions", CVPR 2023. A
matrix is sum_i P_i K_i Q_i over alpha branches of rank beta, and both matrices of an adapter have
the same K_i. The middle is half as wide as the tokens. To start as zero-shot CLIP the last factor
of the second matrix is zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fewshot.checks import whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position
from fewshot.endtoend.parts.branch import Branch, Half, insert_branches
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod


class FactorizedBottleneck(nn.Module):
    """A two-layer network W -> m -> W of factorized matrices.

    Attributes:
        down_P: (alpha, beta, m).
        down_Q: (alpha, W, beta).
        up_P: (alpha, beta, W), zero.
        up_Q: (alpha, m, beta).
        K: (alpha, beta, beta), of both.
        down_bias: (m,), zero.
        up_bias: (W,), zero.
    """

    def __init__(self, width: int, branches: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        middle = max(1, width // 2)

        def drawn(*shape: int) -> nn.Parameter:
            deviation = (branches * shape[-2]) ** -0.5  # the product keeps the tokens' scale
            return nn.Parameter(deviation * torch.randn(shape, generator=generator))

        self.down_Q, self.down_P = drawn(branches, width, rank), drawn(branches, rank, middle)
        self.K = drawn(branches, rank, rank)
        self.up_Q = drawn(branches, middle, rank)
        self.up_P = nn.Parameter(torch.zeros(branches, rank, width))
        self.down_bias = nn.Parameter(torch.zeros(middle))
        self.up_bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W), through beta dimensions in each branch."""
        hidden = gelu(_product(tokens, self.down_Q, self.K, self.down_P) + self.down_bias)
        return _product(hidden, self.up_Q, self.K, self.up_P) + self.up_bias


@dataclass(frozen=True)
class LoRand(PEFTMethod):
    """A factorized bottleneck behind each attention and each MLP.

    Attributes:
        branches: Products that are summed, alpha; published: 2, and 4 in LoRand+ and LoRand++.
        rank: Rank of each product, beta; published: 8, and 16 in LoRand++.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    branches: int = 2
    rank: int = 8
    position: Position = "all"

    name: ClassVar[str] = "lorand"
    summary: ClassVar[str] = "As houlsby-adapter, with a quarter to a half of the numbers to learn."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "branches", "rank")

    def insert(self, clip: Clip) -> Inserted:
        """A branch behind both halves."""
        generator = torch.Generator().manual_seed(self.seed)

        def make(width: int) -> dict[Half, Branch]:
            def core() -> nn.Module:
                return FactorizedBottleneck(width, self.branches, self.rank, generator)

            return {"attn": Branch(core(), "after"), "mlp": Branch(core(), "after")}

        return insert_branches(self, clip, make, self.position)


def _product(x: Tensor, Q: Tensor, K: Tensor, P: Tensor) -> Tensor:
    """The sum over branches of x Q K P."""
    return torch.einsum("...w,awr,ars,asm->...m", x, Q, K, P)
