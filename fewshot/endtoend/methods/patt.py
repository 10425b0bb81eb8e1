"""PATT: keys and values of every attention, moved by a small network of the tokens.

Yu et al., "Toward a Unified View on Visual Parameter-Efficient Transfer Learning", 2022,
https://arxiv.org/abs/2210.00788; as its code has it, sums and not the paper's longer sequences. It
starts as zero-shot CLIP.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import positive, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.prefix import Prefixed
from fewshot.endtoend.parts.blocks import (
    Position,
    blocks_of,
    blocks_path,
    holder_of_projections,
    towers_of,
)
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import linear


class Beside(nn.Module):
    """A projection to keys or values plus s up(tanh(down(x)))."""

    def __init__(self, plain: nn.Module, down: nn.Linear, up: nn.Linear, scale: float) -> None:
        super().__init__()
        self.plain, self.down, self.up, self.scale = plain, down, up, scale

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W)."""
        out: Tensor = self.plain(tokens) + self.scale * self.up(self.down(tokens).tanh())
        return out


@dataclass(frozen=True)
class PATT(PEFTMethod):
    """Keys K + s k' and values V + s v' in every attention, with (k', v') = tanh(x W1) W2.

    Attributes:
        dim: Hidden units of the network, the columns of W1; published: 64 to 128.
        scale: Scale of the addition, s; published: 0.2 to 0.8.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    dim: int = 64
    scale: float = 0.5
    position: Position = "all"

    name: ClassVar[str] = "patt"
    summary: ClassVar[str] = "Adjusts what every block of the model compares in a photo."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "dim")
        positive(self, "scale")

    def insert(self, clip: Clip) -> Inserted:
        """W1 drawn, W2 zero; keys and values share W1, and have half of W2 each."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = {}
        for tower in towers_of(self.towers):
            path = blocks_path(clip.model, tower, self.name)
            blocks: Any = clip.model.get_submodule(path)
            for i in blocks_of(self.position, len(blocks)):
                attention = holder_of_projections(blocks[i])
                if isinstance(attention.k_proj, Prefixed):
                    raise UserError(
                        "patt moves the keys of the tokens, and prefix has put others in front; "
                        "attach patt first"
                    )
                width = attention.q_proj.weight.shape[1]
                down = linear(width, self.dim, generator).to(clip.device)
                layers = {"down": down}
                for matrix in ("k_proj", "v_proj"):
                    layers[matrix] = up = linear(self.dim, width, None).to(clip.device)
                    beside = Beside(getattr(attention, matrix), down, up, self.scale)
                    setattr(attention, matrix, beside)
                for layer, module in layers.items():
                    for name, parameter in module.named_parameters():
                        parameters[f"{path}.{i}.attn.{layer}.{name}"] = parameter
        return parameters, ()
