"""Convpass: beside each attention and each MLP a bottleneck with a convolution over the patches.

Jie and Deng, 2022, https://arxiv.org/abs/2207.07039.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewshot.checks import fraction, positive, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position, blocks_path
from fewshot.endtoend.parts.branch import Branch, Half, insert_branches
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear, patches, quick_gelu


class ConvBottleneck(nn.Module):
    """A bottleneck with a 3 x 3 convolution over the patches in its middle.

    A token before those of the patches, the class token or a learned one, is an image of one pixel
    to it. The convolution starts as the identity.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        grid: tuple[int, int],
        *,
        dropout: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.down = linear(width, dim, None)
        nn.init.xavier_uniform_(self.down.weight, generator=generator)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, device="meta").to_empty(device="cpu")
        nn.init.dirac_(self.conv.weight)
        self.conv.bias = nn.Parameter(torch.zeros(dim))
        self.dropout = nn.Dropout(dropout)
        self.up = linear(dim, width, None)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n + h w, W) of (B, n + h w, W), n tokens before those of the patches."""
        low = quick_gelu(self.down(tokens)).transpose(1, 2)  # (B, d, L)
        n = low.shape[2] - math.prod(self.grid)
        alone = [self.conv(low[:, :, i : i + 1, None]).flatten(2) for i in range(n)]
        patched = self.conv(low[:, :, n:].reshape(*low.shape[:2], *self.grid)).flatten(2)
        mixed = torch.cat([*alone, patched], dim=2).transpose(1, 2)
        out: Tensor = self.up(self.dropout(quick_gelu(mixed)))
        return out


@dataclass(frozen=True)
class Convpass(PEFTMethod):
    """Beside each attention and each MLP a bottleneck with a convolution over the patches.

    Attributes:
        dim: Width of the bottleneck.
        scale: Scale of the addition, s; published: the best of 0.01, 0.1, 1 and 10 for each
            dataset.
        dropout: Dropout before the last layer.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    dim: int = 8
    scale: float = 1.0
    dropout: float = 0.1
    position: Position = "all"

    name: ClassVar[str] = "convpass"
    summary: ClassVar[str] = "Adds small networks that compare neighboring parts of a photo."

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "dim")
        positive(self, "scale")
        fraction(self, "dropout", below_one=True)

    def insert(self, clip: Clip) -> Inserted:
        """A branch parallel to both halves, of the normalized input."""
        blocks_path(clip.model, "image", self.name)
        grid = patches(clip)
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
