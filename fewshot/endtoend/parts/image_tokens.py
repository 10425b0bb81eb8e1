"""The tokens of an image tower and the row of blocks they run through, open_clip's or timm's.

A method that changes how tokens run puts a module of its own in the row's place. open_clip has one
for that, `transformer`; timm's towers get one, beside their own code before and behind the blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import blocks_path, image_kind, norms_of


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """An image tower and what its tokens are; `tower.transformer` runs (B, L, W) tokens.

    Attributes:
        technique: The name of what needs them, for errors.
        tower: open_clip's tower, or timm's.
        blocks: Its blocks.
        before: How many tokens stand before those of the patches: of the class, and registers.
        grid: Rows and columns of the patches.
        pixels: Numbers in a patch, of all colors.
        pools_class: True where the feature is made of the class token.
        norm: Before the blocks.
    """

    technique: str
    tower: Any
    blocks: Any
    before: int
    grid: tuple[int, int]
    pixels: int
    pools_class: bool
    norm: Any

    @property
    def width(self) -> int:
        """W."""
        return len(getattr(self.blocks[0], norms_of(self.blocks[0])[0]).weight)

    @property
    def heads(self) -> int:
        """Heads of a block's attention."""
        attention = self.blocks[0].attn
        return int(getattr(attention, "heads", None) or attention.num_heads)

    def run_by(self, row: nn.Module) -> None:
        """Let a module run the tokens from now on, in place of the row of blocks.

        Raises:
            UserError: Another one does already.
        """
        kind = type(self.tower.transformer)
        if kind is not TimmTransformer and kind.__name__ != "Transformer":
            raise UserError(
                f"{self.technique} runs the tower's blocks in a way of its own, as its "
                f"{kind.__name__} does already; attach to a model of its own"
            )
        self.tower.transformer = row

    def make_room(self, n_tokens: int, blocks: Iterable[int] | None = None) -> None:
        """Let so many tokens more stand before the patches: rotary positions are not for them.

        Args:
            n_tokens: How many.
            blocks: The numbers of the blocks that get them; all without it.
        """
        for i in range(len(self.blocks)) if blocks is None else blocks:
            block = self.blocks[i]
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens += n_tokens

    @classmethod
    def of(cls, clip: Clip, technique: str) -> "ImageTokens":
        """The tokens of a model's image tower.

        Args:
            clip: The model.
            technique: The name of what needs them, for errors.

        Raises:
            UserError: The tower is no vision transformer of a kind known here.
        """
        visual = clip.model.visual
        blocks_path(clip.model, "image", technique)
        trunk: Any = getattr(visual, "trunk", visual)
        if hasattr(trunk, "blocks") and not hasattr(trunk, "transformer"):
            _take_over(trunk, technique, image_kind(clip.model))
        if not hasattr(trunk, "blocks"):
            tower = visual
            _, channels, *patch = tower.conv1.weight.shape
            return cls(
                technique, tower, tower.transformer.resblocks, 1, tuple(tower.grid_size),
                channels * patch[0] * patch[1], tower.pool_type == "tok", tower.ln_pre,
            )  # fmt: skip
        height, width = trunk.patch_embed.grid_size
        return cls(
            technique, trunk, trunk.blocks, int(trunk.num_prefix_tokens), (height, width),
            3 * (clip.preprocess.size // width) ** 2, trunk.global_pool == "token", trunk.norm_pre,
        )  # fmt: skip


class TimmTransformer(nn.Module):
    """timm's blocks in a row, as open_clip's `Transformer` has its own.

    Attributes:
        resblocks: The blocks.
        grad_checkpointing: Keep no activations within a block.
    """

    def __init__(self, blocks: Any) -> None:
        super().__init__()
        self.resblocks = blocks
        self.grad_checkpointing = False

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        """(B, L, W) of (B, L, W); `how` is for the blocks, such as rotary positions."""
        for block in self.resblocks:
            x = run(block, x, how, again=self.grad_checkpointing)
        return x


def run(block: Any, x: Tensor, how: dict[str, Any], *, again: bool) -> Tensor:
    """(B, L, W) a block's tokens; with `again` its activations are computed again for gradients."""
    out: Tensor = checkpoint(block, x, **how, use_reentrant=False) if again else block(x, **how)
    return out


def _take_over(trunk: Any, technique: str, kind: str) -> None:
    """Let a trunk of timm's run its blocks by `transformer`, which it gets.

    Raises:
        UserError: It runs them by code that is not known here.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    known = {
        VisionTransformer.forward_features: _features_of_vit,
        Eva.forward_features: _features_of_eva,
    }
    ours = known.get(type(trunk).forward_features)
    if ours is None:
        raise UserError(
            f"{technique} changes how tokens run through the blocks, and timm's {kind} runs them "
            "in code of its own; use a method that changes the blocks alone, such as clip-lora"
        )
    if getattr(trunk, "rope_mixed", False):
        raise UserError(
            f"{technique} changes how tokens run through the blocks, and in this {kind} each block "
            "has rotary positions of its own; use a method that changes the blocks alone, such as "
            "clip-lora"
        )
    trunk.transformer = TimmTransformer(trunk.blocks)
    trunk.transformer.grad_checkpointing = trunk.grad_checkpointing
    trunk.forward_features = MethodType(ours, trunk)
    trunk.set_grad_checkpointing = MethodType(_set_grad_checkpointing, trunk)


def _features_of_vit(trunk: Any, pixels: Tensor, **_: Any) -> Tensor:
    """Timm's `VisionTransformer.forward_features`, through `transformer` and without masks."""
    x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
    tokens: Tensor = trunk.norm(trunk.transformer(x))
    return tokens


def _features_of_eva(trunk: Any, pixels: Tensor, **_: Any) -> Tensor:
    """Timm's `Eva.forward_features`, through `transformer` and without masks."""
    x, rope = trunk._pos_embed(trunk.patch_embed(pixels))
    tokens: Tensor = trunk.norm(trunk.transformer(trunk.norm_pre(x), rope=rope))
    return tokens


def _set_grad_checkpointing(trunk: Any, enable: bool = True) -> None:
    """Timm's `set_grad_checkpointing`, of what runs the blocks."""
    trunk.transformer.grad_checkpointing = enable
