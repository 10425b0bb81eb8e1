"""EVP: images made smaller, with a border of learned pixels around them.

Wu et al., "Unleashing the Power of Visual Prompting At the Pixel Level", TMLR 2024,
https://arxiv.org/abs/2212.10556. Unlike VP's, the border covers nothing; it starts black. Steps are
of the length of the learning rate: the gradient is divided by its norm, here that of the border's
pixels, in the authors' code that of all pixels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.optim import Optimizer

from fewshot.checks import whole
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.methods.visual_prompt import Border, width_of
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only


class NormalizedSGD(Optimizer):
    """Steps p - lr g / |g|, where |g| is the norm of all parameters' gradients as one vector."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            length = torch.stack([p.grad.norm() for p in moved]).norm() + 1e-10
            for parameter in moved:
                parameter -= group["lr"] / length * parameter.grad


class Framed(nn.Module):
    """Standardized images (B, 3, H, W), made smaller, within a learned border.

    Attributes:
        border: In units of pixels from 0 to 1.
    """

    black: Tensor
    std: Tensor

    def __init__(self, border: Border, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.border, self.width = border, border.top.shape[1]
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        black = -torch.tensor(mean).view(3, 1, 1) / self.std
        self.register_buffer("black", black, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        inside = pixels.shape[-1] - 2 * self.width
        small = interpolate(pixels, (inside, inside), mode="bicubic", antialias=True)
        framed = pad(small - self.black, [self.width] * 4)  # so that padding is black
        learned: Tensor = self.border(framed * self.std) / self.std + self.black
        return learned


@dataclass(frozen=True)
class EVP(PEFTMethod):
    """A learned border around images made smaller by as much; it needs no ViT.

    Attributes:
        pad: Width of the border in pixels; 0 for the published 30 of every 224.
        lr: Length of the first step over all pixels of the border, down half a cosine.
    """

    pad: int = 0
    lr: float = 10.0

    name: ClassVar[str] = "evp"
    summary: ClassVar[str] = "Shrinks each photo and learns a border of pixels around it."
    unfoldable: ClassVar[str] = "it changes the pixels, before any weight of the model"

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "pad", minimum=0, hint="0 is 30 of every 224")

    def insert(self, clip: Clip) -> Inserted:
        """A black border, before whatever the image tower begins with."""
        preprocess = clip.preprocess
        border = Border(preprocess.size, width_of(self.pad, preprocess.size), None)
        framed = Framed(border, preprocess.mean, preprocess.std).to(clip.device)
        encode = clip.model.encode_image
        clip.model.encode_image = lambda pixels: encode(framed(pixels))
        return dict(border.named_parameters()), ()

    def optimizer(self, learner: Learner) -> Optimizer:
        """Normalized gradients; there is no weight decay."""
        return NormalizedSGD(learner.parameters.values(), self.lr)
