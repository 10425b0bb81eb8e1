"""Regions of an image as features: what the tower makes of each place by its last layers."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.attention import AttentionPool
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import image_kind


class EveryPlace(nn.Module):
    """An attention pool with every place of the grid as a query.

    Attributes:
        pool: The pool, whose one query is the mean.
    """

    def __init__(self, pool: AttentionPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, grid: Tensor) -> Tensor:
        """(B, 1 + h w, D) of (B, W, h, w); the first is the pooled feature."""
        return self.pool.every_query(grid)


def regions_of(clip: Clip, technique: str) -> Callable[[Tensor], Tensor]:
    """A function from pixels (B, 3, H, W) to the (B, M, D) features of M regions, any norm.

    The image tower is changed: it pools no more. A ResNet's regions are its attention pool's
    outputs at the M places of the last grid, a vision transformer's its M patches, each through the
    last norm and the projection.

    Args:
        clip: The model.
        technique: The name of what needs them, for errors.

    Raises:
        UserError: The image tower is another, or pools by attention of its own.
    """
    from open_clip.transformer import VisionTransformer

    tower: Any = clip.model.visual
    if isinstance(getattr(tower, "attnpool", None), AttentionPool):
        tower.attnpool = EveryPlace(tower.attnpool)
    elif isinstance(tower, VisionTransformer) and tower.attn_pool is None:
        tower.pool_type = "none"
    else:
        raise UserError(
            f"{technique} needs features of an image's regions, and a {image_kind(clip.model)} as "
            "this one has none; use a model such as ViT-B-16/openai or RN50/openai"
        )

    def regions(pixels: Tensor) -> Tensor:
        tokens: Tensor = clip.model.encode_image(pixels)
        return tokens[:, 1:]

    return regions
