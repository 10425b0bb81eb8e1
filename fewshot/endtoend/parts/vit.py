"""Requirements of methods for vision transformers on an image tower."""

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.image_tokens import ImageTokens


def patches(clip: Clip) -> tuple[int, int]:
    """Rows and columns of the patches, whose tokens are the last of the image tower's."""
    tower = clip.model.visual
    if not hasattr(tower, "transformer"):
        tower = getattr(tower, "trunk", tower).patch_embed
    height, width = tower.grid_size
    return height, width


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


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of OpenAI's models, of any shape."""
    return x * torch.sigmoid(1.702 * x)


def uniform_tokens(n: int, n_tokens: int, vit: ImageTokens, seed: int) -> Tensor:
    """(n, l, W) as VPT draws them: Xavier-uniform of a patch's pixels and the width."""
    bound = (6 / (vit.pixels + vit.width)) ** 0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(n, n_tokens, vit.width).uniform_(-bound, bound, generator=generator)
