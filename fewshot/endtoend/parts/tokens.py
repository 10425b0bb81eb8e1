"""Learned tokens: what a frozen image tower is shown besides the image.

VPT: Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119.
Prefix tuning: Li and Liang, ACL 2021, https://arxiv.org/abs/2101.00190.
PATT: Yu et al., "Toward a Unified View on Visual Parameter-Efficient Transfer Learning", 2022,
https://arxiv.org/abs/2210.00788; as its code has it, sums and not the paper's longer sequences.

PATT starts as zero-shot CLIP. The others do not and cannot: an attention that looks at more tokens
looks less at the image's, whatever the tokens are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.lora import BLOCKS, Position, blocks_of, towers_of
from fewshot.endtoend.parts.peft import Inserted, Tuned
from fewshot.endtoend.parts.vit import image_only, image_vit, linear


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
class VPTShallow(Tuned):
    """Tokens inserted once, where the blocks start; for CLIP that is behind its first layer norm.

    Attributes:
        n_tokens: l.
        dropout: On the tokens.
    """

    n_tokens: int = 10
    dropout: float = 0.0

    name: ClassVar[str] = "vpt-shallow"
    deep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        if self.n_tokens < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "n_tokens must be 1 or more and dropout in [0, 1); got "
                f"{self.n_tokens} and {self.dropout}"
            )

    def insert(self, clip: Clip) -> Inserted:
        """Uniform tokens, in the range that VPT draws them from."""
        tower = image_vit(clip, self.name)
        depth = len(tower.transformer.resblocks) if self.deep else 1
        tokens = uniform_tokens(depth, self.n_tokens, tower, self.seed)
        prompted = PromptedTransformer(tower.transformer, tokens, self.dropout)
        tower.transformer = prompted.to(clip.device).eval()
        return {"tokens": prompted.tokens}, (prompted.dropout,)


@dataclass(frozen=True)
class VPTDeep(VPTShallow):
    """Tokens inserted before every block, in place of what the block before made of its own."""

    name: ClassVar[str] = "vpt-deep"
    deep: ClassVar[bool] = True


class Prefixed(nn.Module):
    """A projection to keys or values, of tokens (B, L, W), with l learned ones in front.

    Attributes:
        prefix: (l, W).
        plain: The projection.
    """

    def __init__(self, plain: nn.Module, prefix: Tensor) -> None:
        super().__init__()
        self.prefix = nn.Parameter(prefix)
        self.plain = plain

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, l + L, W)."""
        projected: Tensor = self.plain(tokens)
        prefix = self.prefix.to(projected.dtype).expand(len(tokens), -1, -1)
        return torch.cat([prefix, projected], dim=1)


@dataclass(frozen=True)
class Prefix(Tuned):
    """Learned keys P_k and values P_v in every attention: softmax(Q [P_k; K]^T) [P_v; V].

    Without the reparametrisation of the language models' prefix, which is lost after training.

    Attributes:
        n_tokens: l.
        position: Which blocks, counted from the input.
    """

    n_tokens: int = 10
    position: Position = "all"

    name: ClassVar[str] = "prefix"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        if self.n_tokens < 1:
            raise UserError(f"n_tokens must be 1 or more; got {self.n_tokens}")

    def insert(self, clip: Clip) -> Inserted:
        """Normal keys and values of deviation 0.02."""
        blocks = image_vit(clip, self.name).transformer.resblocks
        generator = torch.Generator().manual_seed(self.seed)
        parameters = {}
        for i in blocks_of(self.position, len(blocks)):
            attention = blocks[i].attn
            for matrix in ("k_proj", "v_proj"):
                width = attention.q_proj.in_features
                drawn = torch.empty(self.n_tokens, width).normal_(std=0.02, generator=generator)
                prefixed = Prefixed(getattr(attention, matrix), drawn.to(clip.device))
                setattr(attention, matrix, prefixed)
                parameters[f"{BLOCKS['image']}.{i}.attn.{matrix}.prefix"] = prefixed.prefix
        return parameters, ()


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
class PATT(Tuned):
    """Keys K + s k' and values V + s v' in every attention, with (k', v') = tanh(x W1) W2.

    Attributes:
        dim: Columns of W1; published: 64 to 128.
        scale: s; published: .2 to .8.
        position: Which blocks, counted from the input.
    """

    dim: int = 64
    scale: float = 0.5
    position: Position = "all"

    name: ClassVar[str] = "patt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 1:
            raise UserError(f"dim must be 1 or more; got {self.dim}")

    def insert(self, clip: Clip) -> Inserted:
        """W1 drawn, W2 zero; keys and values share W1, and have half of W2 each."""
        if self.towers != "text":
            image_vit(clip, self.name)
        generator = torch.Generator().manual_seed(self.seed)
        parameters = {}
        for tower in towers_of(self.towers):
            blocks: Any = clip.model.get_submodule(BLOCKS[tower])
            for i in blocks_of(self.position, len(blocks)):
                attention = blocks[i].attn
                width = attention.q_proj.in_features
                down = linear(width, self.dim, generator).to(clip.device)
                layers = {"down": down}
                for matrix in ("k_proj", "v_proj"):
                    layers[matrix] = up = linear(self.dim, width, None).to(clip.device)
                    beside = Beside(getattr(attention, matrix), down, up, self.scale)
                    setattr(attention, matrix, beside)
                for layer, module in layers.items():
                    for name, parameter in module.named_parameters():
                        parameters[f"{BLOCKS[tower]}.{i}.attn.{layer}.{name}"] = parameter
        return parameters, ()


def uniform_tokens(n: int, n_tokens: int, tower: Any, seed: int) -> Tensor:
    """(n, l, W) as VPT draws them: Xavier-uniform of a patch's pixels and the width."""
    _, channels, *patch = tower.conv1.weight.shape
    width = tower.conv1.out_channels
    bound = (6 / (channels * patch[0] * patch[1] + width)) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(n, n_tokens, width).uniform_(-bound, bound, generator=generator)
