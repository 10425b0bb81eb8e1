"""Prefix tuning: learned keys and values in every attention of a frozen image tower.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021,
https://arxiv.org/abs/2101.00190. It does not start as zero-shot CLIP and cannot: an attention that
looks at more keys looks less at the image's, whatever the keys are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewshot.checks import whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import (
    PLACES,
    Position,
    blocks_of,
    holder_of_projections,
    is_timms,
)
from fewshot.endtoend.parts.image_tokens import ImageTokens, run
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only


class Prefixed(nn.Module):
    """A projection to keys or values, of tokens (B, L, W), with l learned ones among them.

    Attributes:
        prefix: (l, W).
        plain: The projection.
        before: How many keys stand before the learned ones.
        instead: The learned ones are in place of as many that are there.
    """

    def __init__(self, plain: nn.Module, prefix: Tensor, before: int, *, instead: bool) -> None:
        super().__init__()
        self.prefix = nn.Parameter(prefix)
        self.plain = plain
        self.before = before
        self.rest = before + len(prefix) if instead else before

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, l + L, W); (B, L, W) if the learned ones are in place of others."""
        projected: Tensor = self.plain(tokens)
        prefix = self.prefix.to(projected.dtype).expand(len(tokens), -1, -1)
        return torch.cat([projected[:, : self.before], prefix, projected[:, self.rest :]], dim=1)


class PaddedTransformer(nn.Module):
    """timm's blocks, of which some run with l further tokens, for whose keys others stand.

    timm projects to queries, keys and values at once, of as many tokens. The further ones are zero
    and gone behind the block.

    Attributes:
        resblocks: The blocks.
        padded: The numbers of those with further tokens.
        n_tokens: l.
        before: How many tokens stand before the further ones.
        grad_checkpointing: Keep no activations within a block; timm sets it.
    """

    def __init__(self, transformer: Any, padded: range, n_tokens: int, before: int) -> None:
        super().__init__()
        self.resblocks = transformer.resblocks
        self.padded, self.n_tokens, self.before = padded, n_tokens, before
        self.grad_checkpointing = bool(transformer.grad_checkpointing)

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """(B, L, W) of (B, L, W)."""
        nothing = x.new_zeros(len(x), self.n_tokens, x.shape[2])
        for i, block in enumerate(self.resblocks):
            if i in self.padded:
                x = torch.cat([x[:, : self.before], nothing, x[:, self.before :]], dim=1)
            x = run(block, x, how, again=self.grad_checkpointing)
            if i in self.padded:
                rest = x[:, self.before + self.n_tokens :]
                x = torch.cat([x[:, : self.before], rest], dim=1)
        return x


@dataclass(frozen=True)
class Prefix(PEFTMethod):
    """Learned keys P_k and values P_v in every attention: softmax(Q [P_k; K]^T) [P_v; V].

    Without the reparametrisation of the language models' prefix, which is lost after training.

    Attributes:
        n_tokens: Learned keys and values per attention, l.
        position: Blocks that get one: `all`, or a third or a half of the depth, counted from the
            input.
    """

    # Keys and values of CLIP have a deviation near 1, and AdamW's steps are as long as the rate: at
    # 1e-3 the learned ones stay near zero and only take attention away.
    lr: float = 5e-2
    n_tokens: int = 10
    position: Position = "all"

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = (
        "Gives every block of the model learned tokens to compare a photo with."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "n_tokens")

    def insert(self, clip: Clip) -> Inserted:
        """Normal keys and values of deviation 0.02."""
        vit = ImageTokens.of(clip, self.name)
        chosen = blocks_of(self.position, len(vit.blocks))
        timms = is_timms(vit.blocks[0])
        before = vit.before if timms else 0
        generator = torch.Generator().manual_seed(self.seed)
        parameters = {}
        for i in chosen:
            holder = holder_of_projections(vit.blocks[i])
            for matrix in ("k_proj", "v_proj"):
                drawn = torch.empty(self.n_tokens, vit.width).normal_(std=0.02, generator=generator)
                prefixed = Prefixed(
                    getattr(holder, matrix), drawn.to(clip.device), before, instead=timms
                )
                setattr(holder, matrix, prefixed)
                parameters[f"{PLACES['image'][0]}.{i}.attn.{matrix}.prefix"] = prefixed.prefix
        if timms:
            vit.make_room(self.n_tokens, chosen)
            row = PaddedTransformer(vit.tower.transformer, chosen, self.n_tokens, before)
            vit.run_by(row)
        return parameters, ()
