"""Requirements of methods for vision transformers on an image tower."""

from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import blocks_path, image_kind


def image_vit(clip: Clip, technique: str) -> Any:
    """The image tower, open_clip's `VisionTransformer`; its `transformer` runs (B, L, W) tokens.

    Raises:
        UserError: It is another.
    """
    tower = clip.model.visual
    blocks_path(clip.model, "image", technique)
    if not hasattr(tower, "transformer"):
        raise UserError(
            f"{technique} changes how tokens run through the blocks, and timm's "
            f"{image_kind(clip.model)} runs them in code of its own; use a method that changes "
            "the blocks alone, such as clip-lora, or a model such as ViT-B-16/openai"
        )
    return tower


def patches(clip: Clip) -> tuple[int, int]:
    """Rows and columns of the patches, whose tokens are the last of the image tower's."""
    tower = clip.model.visual
    if not hasattr(tower, "transformer"):
        tower = getattr(tower, "trunk", tower).patch_embed
    height, width = tower.grid_size
    return height, width


def require_blocks_in_a_row(tower: Any, technique: str) -> None:
    """Raise UserError unless the tower runs its blocks as open_clip does, one after the other."""
    if type(tower.transformer).__name__ != "Transformer":
        raise UserError(
            f"{technique} runs the tower's blocks in a way of its own, as its "
            f"{type(tower.transformer).__name__} does already; attach to a model of its own"
        )


def image_only(technique: str, towers: str) -> None:
    """Refuse to change the text tower.

    Raises:
        UserError: It is to be changed.
    """
    if towers != "image":
        raise UserError(f"{technique} changes the image tower only; got towers={towers}; use image")


def linear(
    n_in: int, n_out: int, generator: torch.Generator | None, *, bias: bool = True
) -> nn.Linear:
    """An `nn.Linear` drawn as PyTorch draws its weight, or zero without a generator; zero bias."""
    layer = nn.Linear(n_in, n_out, bias, device="meta").to_empty(device="cpu")  # draws nothing
    if generator is None:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def uniform_tokens(n: int, n_tokens: int, tower: Any, seed: int) -> Tensor:
    """(n, l, W) as VPT draws them: Xavier-uniform of a patch's pixels and the width."""
    _, channels, *patch = tower.conv1.weight.shape
    width = len(tower.conv1.weight)
    bound = (6 / (channels * patch[0] * patch[1] + width)) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(n, n_tokens, width).uniform_(-bound, bound, generator=generator)
