"""LST: a narrow transformer at the side of a frozen image tower, a block beside each of its own.

Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", NeurIPS
2022, https://arxiv.org/abs/2206.06522. What the side network says is added to the tower's last
tokens, where in the paper it replaces them: CLIP's text would mean nothing to it. So it starts as
zero-shot CLIP. Its weights are drawn, not pruned from the tower's. No gradient goes through the
tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import one_of, positive, whole
from fewshot.endtoend.attention import Attention
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear

Seen = Literal["cls", "all"]


class SideBlock(nn.Module):
    """A narrow transformer block; without heads it has no attention, as one token needs none."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.attn: Attention | None = None
        if heads:
            q, k, v, out = (linear(width, width, generator) for _ in range(4))
            self.ln_1 = nn.LayerNorm(width)
            self.attn = Attention(q, k, v, out, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            linear(width, 4 * width, generator), nn.GELU(), linear(4 * width, width, generator)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, r) of (B, L, r)."""
        if self.attn is not None:
            normed = self.ln_1(x)
            x = x + self.attn(normed, normed, normed)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Ladder(nn.Module):
    """The side network: h <- block(mu down(tokens) + (1 - mu) h), one rung per block of the tower.

    Attributes:
        downs: W -> r for the tokens behind each of the tower's blocks.
        gates: mu = sigmoid(gate / T); the first rung has no h to mix with, and no gate.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        dim: int,
        heads: int,
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.downs = nn.ModuleList([linear(width, dim, generator) for _ in range(depth)])
        self.blocks = nn.ModuleList([SideBlock(dim, heads, generator) for _ in range(depth)])
        self.gates = nn.Parameter(torch.zeros(depth - 1))
        self.norm = nn.LayerNorm(dim)
        self.up = linear(dim, width, None)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """(B, L, W) of the tokens (B, L, W) behind each block."""
        mu = torch.sigmoid(self.gates / self.temperature)
        h = self.blocks[0](self.downs[0](states[0]))
        for i in range(1, len(states)):
            h = self.blocks[i](mu[i - 1] * self.downs[i](states[i]) + (1 - mu[i - 1]) * h)
        out: Tensor = self.up(self.norm(h))
        return out


class LadderTransformer(nn.Module):
    """A tower's blocks, with a ladder's output added to the last one's."""

    def __init__(self, transformer: Any, ladder: Ladder, seen: Seen) -> None:
        super().__init__()
        self.resblocks = transformer.resblocks
        self.ladder = ladder
        self.n_seen = 1 if seen == "cls" else None

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """(B, L, W) of (B, L, W)."""
        states = []
        for block in self.resblocks:
            x = block(x, **how)
            states.append(x[:, : self.n_seen])
        side = self.ladder(states)
        return torch.cat([x[:, : self.n_seen] + side, x[:, side.shape[1] :]], dim=1)


@dataclass(frozen=True)
class LST(PEFTMethod):
    """A narrow transformer at the tower's side that reads the tokens behind each block.

    Attributes:
        reduction: How many times narrower the side network is.
        seen: Tokens that it reads: all, or the class token alone, at a fraction of the cost.
        temperature: T of the gates.
    """

    reduction: int = 8
    seen: Seen = "all"
    temperature: float = 0.1

    name: ClassVar[str] = "lst"
    summary: ClassVar[str] = (
        "Trains a small network beside the model, which stays as it is. Needs less memory."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        one_of(self, "seen", get_args(Seen))
        whole(self, "reduction")
        positive(self, "temperature")

    def insert(self, clip: Clip) -> Inserted:
        """A ladder as deep as the tower and with as many heads."""
        vit = ImageTokens.of(clip, self.name)
        if self.seen == "cls" and not vit.pools_class:
            raise UserError("the image tower does not pool by its class token; use seen=all")
        width, heads = vit.width, vit.heads
        dim = width // self.reduction
        if dim % heads or not dim:
            raise UserError(
                f"reduction must leave the tower's {heads} heads a share each of {width} / "
                f"reduction; got {self.reduction}"
            )
        ladder = Ladder(
            width,
            len(vit.blocks),
            dim,
            heads if self.seen == "all" else 0,
            self.temperature,
            torch.Generator().manual_seed(self.seed),
        ).to(clip.device)
        vit.run_by(LadderTransformer(vit.tower.transformer, ladder, self.seen).eval())
        return dict(ladder.named_parameters()), ()
