"""VPT: learned tokens that a frozen image tower sees beside the image's own.

Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119. It does not start
as zero-shot CLIP and cannot: an attention that looks at more tokens looks less at the image's,
whatever the tokens are. Shallow and deep share this file: they differ in the number of blocks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewshot.checks import fraction, whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import (
    image_only,
    image_vit,
    require_blocks_in_a_row,
    uniform_tokens,
)


class PromptedTransformer(nn.Module):
    """A tower's blocks with learned tokens behind the class token.

    Attributes:
        resblocks: The blocks.
        tokens: (n, l, W): l at the input of each of the first n blocks, in place of what became
            of those before.
        dropout: On the learned tokens.
    """

    def __init__(self, transformer: Any, tokens: Tensor, dropout: float) -> None:
        super().__init__()
        self.resblocks = transformer.resblocks
        self.tokens = nn.Parameter(tokens)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        """(B, L, W) of (B, L, W): the learned tokens are gone again."""
        n, n_tokens, _ = self.tokens.shape
        rest = 1  # where the patches start
        for i, block in enumerate(self.resblocks):
            if i < n:
                learned = self.dropout(self.tokens[i]).to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], learned, x[:, rest:]], dim=1)
                rest = 1 + n_tokens
            x = block(x)
        return torch.cat([x[:, :1], x[:, rest:]], dim=1)


@dataclass(frozen=True)
class VPTShallow(PEFTMethod):
    """Tokens inserted once, where the blocks start; for CLIP that is behind its first layer norm.

    Attributes:
        n_tokens: l.
        dropout: On the tokens.
    """

    n_tokens: int = 10
    dropout: float = 0.0

    name: ClassVar[str] = "vpt-shallow"
    summary: ClassVar[str] = "Shows the model a few learned tokens beside each photo."
    deep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "n_tokens")
        fraction(self, "dropout", below_one=True)

    def insert(self, clip: Clip) -> Inserted:
        """Uniform tokens, in the range that VPT draws them from."""
        tower = image_vit(clip, self.name)
        require_blocks_in_a_row(tower, self.name)
        depth = len(tower.transformer.resblocks) if self.deep else 1
        tokens = uniform_tokens(depth, self.n_tokens, tower, self.seed)
        prompted = PromptedTransformer(tower.transformer, tokens, self.dropout)
        tower.transformer = prompted.to(clip.device).eval()
        return {"tokens": prompted.tokens}, (prompted.dropout,)


@dataclass(frozen=True)
class VPTDeep(VPTShallow):
    """Tokens inserted before every block, in place of what the block before made of its own."""

    name: ClassVar[str] = "vpt-deep"
    summary: ClassVar[str] = (
        "Shows every block of the model a few learned tokens beside each photo."
    )
    deep: ClassVar[bool] = True
