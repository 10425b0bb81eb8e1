"""DTL: a low-rank network at the side of an image tower, written back behind its later blocks.

Fu et al., "DTL: Disentangled Transfer Learning for Visual Recognition", AAAI 2024,
https://arxiv.org/abs/2312.07856. As the authors' code has it, DTL+'s convolution is one for all
blocks and the class token, as any token before the patches, goes past it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import positive, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import Position, blocks_of
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear


class CompactSide(nn.Module):
    """A tower's blocks, behind the later of which what was gathered at the side is added.

    r <- r + x A^T B^T before each block, x <- block(x) + swish(r) behind the last of them, where
    swish(r) = r sigmoid(beta r); in DTL+ a depthwise convolution over the patches follows swish.

    Attributes:
        A: (depth, rank, W), drawn as `nn.Linear` draws its weight.
        B: (depth, W, rank), zero.
        conv: DTL+'s, one for all blocks.
        writes: The blocks behind which it is added.
    """

    def __init__(
        self,
        transformer: Any,
        width: int,
        rank: int,
        writes: range,
        beta: float,
        kernel: int,
        grid: tuple[int, int],
        before: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.resblocks = transformer.resblocks
        self.writes, self.beta, self.grid, self.before = writes, beta, grid, before
        drawn = [linear(width, rank, generator).weight for _ in self.resblocks]
        self.A = nn.Parameter(torch.stack(drawn).detach())
        self.B = nn.Parameter(torch.zeros(len(drawn), width, rank))
        self.conv: nn.Conv2d | None = None
        if kernel:
            self.conv = nn.Conv2d(
                width, width, kernel, padding="same", groups=width, bias=False, device="meta"
            ).to_empty(device="cpu")
            nn.init.kaiming_uniform_(self.conv.weight, a=5**0.5, generator=generator)

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """(B, L, W) of (B, L, W)."""
        gathered = torch.zeros_like(x)
        for i, block in enumerate(self.resblocks):
            gathered = gathered + x @ self.A[i].T @ self.B[i].T
            x = block(x, **how)
            if i in self.writes:
                x = x + self._written(gathered)
        return x

    def _written(self, gathered: Tensor) -> Tensor:
        swish = gathered * torch.sigmoid(self.beta * gathered)
        if self.conv is None:
            return swish
        patches = swish[:, self.before :].transpose(1, 2).reshape(len(swish), -1, *self.grid)
        mixed = self.conv(patches).flatten(2).transpose(1, 2)
        return torch.cat([swish[:, : self.before], mixed], dim=1)


@dataclass(frozen=True)
class DTL(PEFTMethod):
    """A low-rank side network that gathers from every block and writes back behind the later ones.

    Attributes:
        rank: Rank of the map at each block.
        beta: Sharpness of swish.
        writes: Blocks behind which the tower gets what was gathered; no gradient goes to earlier
            ones.
        kernel: Side of DTL+'s convolution, an odd number, 3 in its few-shot script; 0 for DTL,
            which has none.
    """

    rank: int = 2
    beta: float = 100.0
    writes: Position = "half-up"
    kernel: int = 0

    name: ClassVar[str] = "dtl"
    summary: ClassVar[str] = (
        "Trains a very small network that corrects the later blocks of the model."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "rank")
        whole(self, "kernel", minimum=0)
        if self.kernel and self.kernel % 2 == 0:
            raise UserError(
                "kernel must be odd, so that it has a middle, or 0 for no convolution; "
                f"got {self.kernel}"
            )
        positive(self, "beta")

    def insert(self, clip: Clip) -> Inserted:
        """The side network, at first of no effect."""
        vit = ImageTokens.of(clip, self.name)
        side = CompactSide(
            vit.tower.transformer,
            vit.width,
            self.rank,
            blocks_of(self.writes, len(vit.blocks)),
            self.beta,
            self.kernel,
            vit.grid,
            vit.before,
            torch.Generator().manual_seed(self.seed),
        )
        vit.run_by(side.to(clip.device).eval())
        names = ("A", "B", *(["conv.weight"] if self.kernel else []))
        return {name: side.get_parameter(name) for name in names}, ()
