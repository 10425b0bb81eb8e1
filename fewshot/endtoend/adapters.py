"""Adapters: methods that train a small branch in each block of a tower.

AdaptFormer: Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.13535.
Houlsby: Houlsby et al., ICML 2019, https://arxiv.org/abs/1902.00751.
Convpass: Jie and Deng, 2022, https://arxiv.org/abs/2207.07039.
AdapterBias: Fu et al., Findings of NAACL 2022, https://arxiv.org/abs/2205.00305.
CLIP-Adapter inside a tower: Gao et al., IJCV 2024, https://arxiv.org/abs/2110.04544, Table 2.

All but the last start as zero-shot CLIP, to which end Houlsby's second layer, drawn near zero in
its paper, is zero. Steps and optimizer are those of `tuned.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.branch import (
    Bottleneck,
    Branch,
    ConvBottleneck,
    GatedBias,
    Half,
    insert_branches,
)
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.lora import Position
from fewshot.endtoend.tuned import Inserted, Tuned
from fewshot.endtoend.vit import image_only, image_vit, linear


@dataclass(frozen=True)
class AdaptFormer(Tuned):
    """Beside each MLP a bottleneck: x + mlp(LN(x)) + s up(ReLU(down(x))), x not normalised.

    Attributes:
        dim: Of the bottleneck; published: 64, and 8 in benchmarks of many methods.
        scale: s.
        learned_scale: Train s too.
        dropout: Behind the ReLU.
        position: Which blocks, counted from the input.
    """

    dim: int = 64
    scale: float = 0.1
    learned_scale: bool = False
    dropout: float = 0.1
    position: Position = "all"

    name: ClassVar[str] = "adaptformer"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_bottleneck(self.dim, self.dropout)

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


@dataclass(frozen=True)
class Houlsby(Tuned):
    """Behind each attention and each MLP, before the residual, h + up(GELU(down(h))).

    Attributes:
        dim: Of the bottleneck.
        position: Which blocks, counted from the input.
    """

    dim: int = 64
    position: Position = "all"

    name: ClassVar[str] = "houlsby-adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_bottleneck(self.dim)

    def insert(self, clip: Clip) -> Inserted:
        """A branch behind both halves."""
        generator = torch.Generator().manual_seed(self.seed)

        def make(width: int) -> dict[Half, Branch]:
            def core() -> nn.Module:
                return Bottleneck(width, self.dim, activation=nn.GELU(), generator=generator)

            return {"attn": Branch(core(), "after"), "mlp": Branch(core(), "after")}

        return insert_branches(self, clip, make, self.position)


@dataclass(frozen=True)
class Convpass(Tuned):
    """Beside each attention and each MLP a bottleneck with a convolution over the patches.

    Attributes:
        dim: Of the bottleneck.
        scale: s; published: the best of .01, .1, 1 and 10 for each dataset.
        dropout: Before the last layer.
        position: Which blocks, counted from the input.
    """

    dim: int = 8
    scale: float = 1.0
    dropout: float = 0.1
    position: Position = "all"

    name: ClassVar[str] = "convpass"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        _require_bottleneck(self.dim, self.dropout)

    def insert(self, clip: Clip) -> Inserted:
        """A branch parallel to both halves, of the normalised input."""
        grid = tuple(image_vit(clip, self.name).grid_size)
        generator = torch.Generator().manual_seed(self.seed)

        def make(width: int) -> dict[Half, Branch]:
            def core() -> nn.Module:
                return ConvBottleneck(
                    width, self.dim, grid, dropout=self.dropout, generator=generator
                )

            return {
                "attn": Branch(core(), "parallel", scale=self.scale),
                "mlp": Branch(core(), "parallel", scale=self.scale),
            }

        return insert_branches(self, clip, make, self.position)


@dataclass(frozen=True)
class AdapterBias(Tuned):
    """Behind each MLP, before the residual, one vector times a number of each token.

    Attributes:
        position: Which blocks, counted from the input.
    """

    position: Position = "all"

    name: ClassVar[str] = "adapterbias"

    def insert(self, clip: Clip) -> Inserted:
        """A branch behind every MLP."""
        generator = torch.Generator().manual_seed(self.seed)
        return insert_branches(
            self,
            clip,
            lambda width: {"mlp": Branch(GatedBias(width, generator=generator), "after")},
            self.position,
        )


@dataclass(frozen=True)
class InnerCLIPAdapter(Tuned):
    """CLIP-Adapter's network behind one block: (1 - ratio) x + ratio ReLU(W2 ReLU(W1 x)).

    Not zero-shot CLIP at first, as CLIP-Adapter behind the tower is not.

    Attributes:
        block: Behind which, counted from 1; 0 for the last.
        ratio: Share of the adapter.
        reduction: How many times narrower than the tokens its middle is.
    """

    block: int = 0
    ratio: float = 0.2
    reduction: int = 4

    name: ClassVar[str] = "inner-clip-adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        if self.block < 0 or self.reduction < 1 or not 0 <= self.ratio <= 1:
            raise UserError(
                "block must be 0 or more, reduction 1 or more and ratio from 0 to 1; got "
                f"{self.block}, {self.reduction} and {self.ratio}"
            )

    def insert(self, clip: Clip) -> Inserted:
        """A branch on the stream behind one block."""
        depth = len(image_vit(clip, self.name).transformer.resblocks)
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


def _require_bottleneck(dim: int, dropout: float = 0.0) -> None:
    if dim < 1 or not 0 <= dropout < 1:
        raise UserError(f"dim must be 1 or more and dropout in [0, 1); got {dim} and {dropout}")
