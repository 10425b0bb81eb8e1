"""Small learned modules beside, before or after the halves of a tower's blocks.

A block is two halves, x + attn(LN(x)) and x + mlp(LN(x)). A branch adds s f(.) to one of the
tensors of a half; with f zero at first the tower computes what it did. What f is and where it acts
makes the difference between the adapters, which have a file each. All of them but
`inner_clip_adapter` start as zero-shot CLIP; steps and optimizer are those of `peft`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import (
    Position,
    blocks_of,
    blocks_path,
    is_timms,
    norms_of,
    towers_of,
)
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import linear

Half = Literal["attn", "mlp", "block"]  # of a block, or all of it
Mode = Literal["before", "parallel", "after", "stream"]


class Branch(nn.Module):
    """s f(tokens), to be added to a tensor of a half.

    Attributes:
        core: f, of (B, L, W) tokens; zero at first, or nearly so.
        mode: Which tensor: the attention's or MLP's input ("before"), its output ("after"; f sees
            the same tensor), its output but with f of its input ("parallel"), or the sum of output
            and residual ("stream").
        normed: Whether f in parallel sees the input behind or before the layer norm. Beside a whole
            block, which is parallel too, there is no norm.
        scale: s; learned too, if a parameter.
    """

    def __init__(
        self,
        core: nn.Module,
        mode: Mode,
        *,
        normed: bool = True,
        scale: float = 1.0,
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        self.core, self.mode, self.normed = core, mode, normed
        self.scale = nn.Parameter(torch.tensor(scale)) if learned_scale else scale

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, W) of that."""
        out: Tensor = self.scale * self.core(tokens)
        return out


Branches = Mapping[Half, Branch]


class BranchedBlock(nn.Module):
    """open_clip's block with a branch at one of its halves or at both.

    Submodules keep open_clip's names, so that other updates find them where they look.
    """

    ln_1: Any
    ln_2: Any
    ls_1: Any
    ls_2: Any
    attn: Any
    mlp: Any

    def __init__(self, block: Any, branches: Branches) -> None:
        super().__init__()
        for name, part in [*block.named_children(), *block.named_parameters(recurse=False)]:
            setattr(self, name, part)
        self.branches = nn.ModuleDict(dict(branches.items()))

    def forward(
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Any = None
    ) -> Tensor:
        """(B, L, W) of (B, L, W); called as open_clip calls its own."""

        def attend(tokens: Tensor) -> Tensor:
            mask = None if attn_mask is None else attn_mask.to(tokens.dtype)
            out: Tensor = self.attn(tokens, tokens, tokens, need_weights=False, attn_mask=mask)[0]
            return out

        x = self._half("attn", q_x, self.ln_1, attend, self.ls_1)
        return self._beside(q_x, self._half("mlp", x, self.ln_2, self.mlp, self.ls_2))

    def _half(
        self,
        half: Half,
        x: Tensor,
        norm: Callable[[Tensor], Tensor],
        inner: Callable[[Tensor], Tensor],
        layer_scale: Callable[[Tensor], Tensor],
    ) -> Tensor:
        normed = norm(x)
        if half not in self.branches:
            return x + layer_scale(inner(normed))
        branch: Any = self.branches[half]
        if branch.mode == "before":
            normed = normed + branch(normed)
        out = layer_scale(inner(normed))
        if branch.mode == "parallel":
            out = out + branch(normed if branch.normed else x)
        elif branch.mode == "after":
            out = out + branch(out)
        x = x + out
        return x + branch(x) if branch.mode == "stream" else x

    def _beside(self, x: Tensor, out: Tensor) -> Tensor:
        """The block's output, and what the branch beside all of it makes of its input."""
        return out + self.branches["block"](x) if "block" in self.branches else out


class TimmBranchedBlock(BranchedBlock):
    """timm's block with branches, that of a plain ViT or of Eva; submodules keep timm's names."""

    norm1: Any
    norm2: Any

    def forward(self, x: Tensor, **how: Any) -> Tensor:  # type: ignore[override]  # as timm's
        """(B, L, W) of (B, L, W); called as timm calls its own, rotary positions included."""
        out = self._half("attn", x, self.norm1, lambda y: self.attn(y, **how), self._scaled(1))
        return self._beside(x, self._half("mlp", out, self.norm2, self.mlp, self._scaled(2)))

    def _scaled(self, half: int) -> Callable[[Tensor], Tensor]:
        """The layer scale: a module of a plain ViT's block, a vector of Eva's or None."""
        module: Callable[[Tensor], Tensor] | None = getattr(self, f"ls{half}", None)
        gamma: Any = getattr(self, f"gamma_{half}", None)
        return module or (lambda y: y if gamma is None else gamma * y)


class Bottleneck(nn.Module):
    """A two-layer network through few dimensions, W -> d -> W; the second layer starts at zero."""

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        activation: nn.Module,
        dropout: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.down = linear(width, dim, generator)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.up = linear(dim, width, None)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W)."""
        out: Tensor = self.up(self.dropout(self.activation(self.down(tokens))))
        return out


def insert_branches(
    method: PEFTMethod,
    clip: Clip,
    make: Callable[[int], Branches],
    position: Position | int = "all",
) -> Inserted:
    """Replace the blocks at a position by branched ones, in place; returns as `insert`.

    Args:
        method: The method of the branches; it says in which towers.
        clip: The model.
        make: The branches of one block of the width given; called block by block, text first.
        position: Which blocks, counted from the input, as in `blocks.blocks_of`; or just one, by
            its number from 0.

    Raises:
        UserError: A tower that is meant has no transformer blocks; or a block has branches already.
    """
    parameters: dict[str, nn.Parameter] = {}
    modules: list[nn.Module] = []
    for tower in towers_of(method.towers):
        path = blocks_path(clip.model, tower, method.name)
        blocks: Any = clip.model.get_submodule(path)
        chosen = [position] if isinstance(position, int) else blocks_of(position, len(blocks))
        for i in chosen:
            own, inside = branch_block(method.name, clip, path, i, make)
            parameters |= own
            modules += inside
    return parameters, modules


def branch_block(
    technique: str,
    clip: Clip,
    path: str,
    number: int,
    make: Callable[[int], Branches],
) -> Inserted:
    """Replace one block by a branched one, in place; returns as `insert`.

    Args:
        technique: The name of what needs it, for errors.
        clip: The model.
        path: Of the tower's blocks.
        number: The block's, from 0.
        make: The branches of a block of the width given.

    Raises:
        UserError: The block has branches already.
    """
    blocks: Any = clip.model.get_submodule(path)
    block = blocks[number]
    if hasattr(block, "branches"):
        raise UserError(
            f"{technique} adds to a block's halves, and {path}.{number} has a branch already; "
            "attach to a model of its own"
        )
    kind = TimmBranchedBlock if is_timms(block) else BranchedBlock
    branches = make(len(getattr(block, norms_of(block)[0]).weight))
    blocks[number] = kind(block, branches).to(clip.device).eval()
    parameters = {
        f"{path}.{number}.{half}.{name}": parameter
        for half, branch in branches.items()
        for name, parameter in branch.named_parameters()
    }
    return parameters, list(branches.values())
