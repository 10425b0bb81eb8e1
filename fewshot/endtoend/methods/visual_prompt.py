"""VP: a border of learned pixels around each image.

Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale Models", 2022,
https://arxiv.org/abs/2203.17274. A border covers pixels and is drawn at random, as in the authors'
code, so it does not start as zero-shot CLIP.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cache.errors import UserError
from fewshot.checks import whole
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only


class Border(nn.Module):
    """A frame of learned pixels that is added to images (B, 3, H, W).

    Attributes:
        top: (3, pad, W).
        bottom: (3, pad, W).
        left: (3, H - 2 pad, pad).
        right: (3, H - 2 pad, pad).
    """

    def __init__(self, size: tuple[int, int], pad: int, generator: torch.Generator) -> None:
        super().__init__()
        height, width = size
        horizontal, vertical = (3, pad, width), (3, height - 2 * pad, pad)
        self.inside = (3, height - 2 * pad, width - 2 * pad)
        self.top = nn.Parameter(torch.randn(horizontal, generator=generator))
        self.bottom = nn.Parameter(torch.randn(horizontal, generator=generator))
        self.left = nn.Parameter(torch.randn(vertical, generator=generator))
        self.right = nn.Parameter(torch.randn(vertical, generator=generator))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        middle = torch.cat([self.left, self.left.new_zeros(self.inside), self.right], dim=2)
        return pixels + torch.cat([self.top, middle, self.bottom], dim=1)


@dataclass(frozen=True)
class VisualPrompt(PEFTMethod):
    """A learned border added to the normalized pixels; it needs no ViT.

    Trained as published, by SGD with a rate of 40 and momentum down half a cosine, but for as many
    steps as the other methods and so without the 1000 steps of warm-up.

    Attributes:
        pad: Width of the border in pixels.
        lr: Maximum learning rate.
        weight_decay: SGD's.
    """

    pad: int = 30
    lr: float = 40.0
    weight_decay: float = 0.0

    name: ClassVar[str] = "visual-prompt"
    summary: ClassVar[str] = (
        "Learns a border of pixels around each photo, which has to be larger than that."
    )
    unfoldable: ClassVar[str] = "it changes the pixels, before any weight of the model"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "pad")

    def insert(self, clip: Clip) -> Inserted:
        """Normal pixels of deviation 1, before whatever the image tower begins with."""
        size = clip.preprocess.size
        if 2 * self.pad >= size:
            raise UserError(
                f"pad must be less than half of an image's {size} x {size}; got {self.pad}"
            )
        border = Border((size, size), self.pad, torch.Generator().manual_seed(self.seed))
        border.to(clip.device)
        encode = clip.model.encode_image
        clip.model.encode_image = lambda pixels: encode(border(pixels))
        return dict(border.named_parameters()), ()

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return SGD(
            learner.parameters.values(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
        )
