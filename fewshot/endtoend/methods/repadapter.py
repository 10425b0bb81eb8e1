"""RepAdapter: x + s (B (A x + a) + b) between a norm and the matrices it feeds.

Luo et al., 2023, https://arxiv.org/abs/2302.08106. `fold` puts it into the matrices, W (I + s B A).
B is made of g blocks, each of which writes a share of the channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cache.errors import UserError
from fewshot.checks import fraction, one_of, positive, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import (
    Position,
    blocks_of,
    blocks_path,
    holder_of_projections,
    matrix_in,
    norms_of,
    towers_of,
)
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.weight_delta import (
    WeightDelta,
    put,
    split,
)


class AdaptedNorm(WeightDelta):
    """A norm and the adapter of its output.

    Attributes:
        A: (h, d), Xavier-uniform.
        a: (h,), zero at first.
        B: (g, d / g, h / g), zero at first.
        b: (d,), zero at first.
        scale: s.
        dropout: Of A x + a, in training.
        followers: The matrices.
    """

    def __init__(
        self,
        plain: nn.LayerNorm,
        followers: Sequence[nn.Module],
        hidden: int,
        groups: int,
        scale: float,
        *,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(plain)
        plain_ones = (f.plain if isinstance(f, WeightDelta) else f for f in followers)
        # A tuple, so that the matrices do not count as this module's.
        self.followers: tuple[Any, ...] = tuple(plain_ones)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        width = len(plain.weight)
        if hidden % groups or width % groups:
            raise UserError(
                f"groups must divide dim and the tower's width; got {groups} for {hidden} and "
                f"{width}; use 1 or 2 groups"
            )
        drawn = nn.init.xavier_uniform_(torch.empty(hidden, width), generator=generator)
        self.A = nn.Parameter(drawn.to(plain.weight))
        self.a = nn.Parameter(plain.weight.new_zeros(hidden))
        self.B = nn.Parameter(plain.weight.new_zeros(groups, width // groups, hidden // groups))
        self.b = nn.Parameter(plain.weight.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """The norm's output and the update of it."""
        x = self.plain(x)
        hidden = split(self.dropout(linear(x, self.A, self.a)), len(self.B))
        update = torch.einsum("...gh,gdh->...gd", hidden, self.B).flatten(-2) + self.b
        return x + self.scale * update

    @torch.no_grad()
    def fold(self) -> None:
        """Leave the norm as it is and put the update into the matrices after it."""
        up: Tensor = torch.block_diag(*self.B)  # type: ignore[no-untyped-call]  # (d, h)
        for follower in self.followers:
            weight: Tensor = follower.weight
            bias: Tensor | None = follower.bias
            shift = self.scale * weight @ (up @ self.a + self.b)
            follower.weight = nn.Parameter(
                weight + self.scale * weight @ up @ self.A, requires_grad=False
            )
            follower.bias = nn.Parameter(
                shift if bias is None else bias + shift, requires_grad=False
            )


@dataclass(frozen=True)
class RepAdapter(PEFTMethod):
    """A narrow linear adapter between each norm and the matrices that it feeds.

    The authors choose the scale (0.1 to 10) for each dataset.

    Attributes:
        dim: Width of the adapter, h.
        groups: Groups, g: the second of its matrices writes each share of the channels from its own
            hidden units.
        scale: Scale of the addition, s.
        dropout: Share of hidden units that are zeroed in training.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    weight_decay: float = 1e-4
    dim: int = 8
    groups: int = 2
    scale: float = 1.0
    dropout: float = 0.1
    position: Position = "all"

    name: ClassVar[str] = "repadapter"
    summary: ClassVar[str] = "Adds small layers that become part of the model's own after training."
    unfoldable: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "dim", "groups")
        positive(self, "scale")
        fraction(self, "dropout", below_one=True)
        one_of(self, "position", get_args(Position))

    def insert(self, clip: Clip) -> Inserted:
        """Before attention and before the MLP of each block."""
        if self.towers != "text" and hasattr(clip.model.visual, "attnpool"):
            raise UserError(
                "repadapter goes between a block's norms and matrices, which a ResNet's image "
                "tower does not have; use towers=text, or a ViT"
            )
        generator = torch.Generator().manual_seed(self.seed)
        adapters: dict[str, WeightDelta] = {}
        for tower in towers_of(self.towers):
            path = blocks_path(clip.model, tower, self.name)
            blocks: Any = clip.model.get_submodule(path)
            for i in blocks_of(self.position, len(blocks)):
                block = blocks[i]
                first, second = norms_of(block)
                plain = getattr(block, first)
                if not isinstance(plain, nn.LayerNorm):
                    raise UserError(
                        f"repadapter goes behind a plain norm; that of {path}.{i} is a "
                        f"{type(plain).__name__}; attach to a model of its own"
                    )
                fc1 = block.get_submodule(matrix_in(block, "fc1", f"{path}.{i}"))
                holder: Any = holder_of_projections(block)
                attention = [holder.q_proj, holder.k_proj, holder.v_proj]
                if getattr(block.attn, "gate", None) is not None:  # timm's, fed by the norm too
                    attention.append(block.attn.gate)
                for norm, fed in ((first, attention), (second, [fc1])):
                    adapters[f"{path}.{i}.{norm}"] = AdaptedNorm(
                        getattr(block, norm),
                        fed,
                        self.dim,
                        self.groups,
                        self.scale,
                        dropout=self.dropout,
                        generator=generator,
                    )
        return put(clip.model, adapters)
