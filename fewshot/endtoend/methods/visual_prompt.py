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
        top: (3, pad, W), normal, or zero without a generator, and so are the others.
        bottom: (3, pad, W).
        left: (3, H - 2 pad, pad).
        right: (3, H - 2 pad, pad).
    """

    def __init__(self, size: int, pad: int, generator: torch.Generator | None) -> None:
        super().__init__()
        horizontal, vertical = (3, pad, size), (3, size - 2 * pad, pad)
        self.inside = (3, size - 2 * pad, size - 2 * pad)

        def drawn(shape: tuple[int, ...]) -> nn.Parameter:
            noise = torch.zeros(shape)
            return nn.Parameter(noise if generator is None else noise.normal_(generator=generator))

        self.top, self.bottom = drawn(horizontal), drawn(horizontal)
        self.left, self.right = drawn(vertical), drawn(vertical)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        middle = torch.cat([self.left, self.left.new_zeros(self.inside), self.right], dim=2)
        return pixels + torch.cat([self.top, middle, self.bottom], dim=1)


def width_of(pad: int, size: int) -> int:
    """The width of a border around images of that size; `pad`, or 30 of every 224 pixels.

    Raises:
        UserError: It leaves nothing of the image.
    """
    if 2 * pad >= size:
        raise UserError(f"pad must be less than half of an image's {size} x {size}; got {pad}")
    return pad or max(1, round(size * 30 / 224))


@dataclass(frozen=True)
class VisualPrompt(PEFTMethod):
    """A learned border added to the normalized pixels; it needs no ViT.

    Trained as published, by SGD with momentum down half a cosine, but for as many steps as the
    other methods and so without the 1000 steps of warm-up, and not at a rate of 40, which fell
    below zero-shot on few shots of digits.

    Attributes:
        pad: Width of the border in pixels; 0 for the published 30 of every 224.
        lr: Maximum learning rate; published: 40.
        weight_decay: Weight decay of SGD.
    """

    pad: int = 0
    lr: float = 1.0
    weight_decay: float = 0.0

    name: ClassVar[str] = "visual-prompt"
    summary: ClassVar[str] = "Learns a border of pixels around each photo."
    unfoldable: ClassVar[str] = "it changes the pixels, before any weight of the model"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "pad", minimum=0, hint="0 is 30 of every 224")

    def insert(self, clip: Clip) -> Inserted:
        """Normal pixels of deviation 1, before whatever the image tower begins with."""
        size = clip.preprocess.size
        generator = torch.Generator().manual_seed(self.seed)
        border = Border(size, width_of(self.pad, size), generator).to(clip.device)
        encode = clip.model.encode_image
        clip.model.encode_image = lambda pixels: encode(border(pixels))
        return dict(border.named_parameters()), ()

    def optimizer(self, learner: Learner) -> Optimizer:
        """SGD with momentum."""
        return SGD(
            learner.parameters.values(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
        )
