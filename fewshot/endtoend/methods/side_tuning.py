"""Side-Tuning: a small convolutional network S beside the frozen model B, a B(x) + (1 - a) S(x).

Zhang et al., "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks", ECCV
2020, https://arxiv.org/abs/1912.13503. B(x) is CLIP's unit-norm feature. The side network is drawn
at random, where the paper's is distilled from the base, and its last layer is zero, so that it
starts as zero-shot CLIP. No gradient goes through the model.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fewshot.checks import whole
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import image_only, linear


class SideNetwork(nn.Module):
    """Convolutions that halve the image, each with group norm and ReLU; their mean, mapped to D."""

    def __init__(self, channels: int, layers: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i in range(layers):
            conv = nn.Conv2d(channels if i else 3, channels, 3, stride=2, padding=1, device="meta")
            conv = conv.to_empty(device="cpu")
            nn.init.kaiming_uniform_(conv.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
            self.convs.append(conv)
            self.norms.append(nn.GroupNorm(1, channels))
        self.out = linear(channels, dim, None)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, D) of (B, 3, H, W)."""
        x = pixels
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        out: Tensor = self.out(x.mean(dim=(2, 3)))
        return out


@dataclass(frozen=True)
class SideTuning(PEFTMethod):
    """A small convolutional network of the pixels, blended with CLIP's feature; it needs no ViT.

    Attributes:
        channels: Channels of each convolution.
        layers: Number of convolutions.
    """

    channels: int = 64
    layers: int = 4

    name: ClassVar[str] = "side-tuning"
    summary: ClassVar[str] = (
        "Trains a small network of the photo itself and blends it with the model."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        image_only(self.name, self.towers)
        whole(self, "channels", "layers")

    def insert(self, clip: Clip) -> Inserted:
        """The side network, at first of no effect, and alpha, the sigmoid of which is a, at 0."""
        generator = torch.Generator().manual_seed(self.seed)
        dim = int(clip.identity["dim"])
        side = SideNetwork(self.channels, self.layers, dim, generator).to(clip.device)
        alpha = nn.Parameter(torch.zeros((), device=clip.device))
        encode = clip.model.encode_image

        def blended(pixels: Tensor) -> Tensor:
            base = normalize(encode(pixels).float(), dim=-1)
            a = alpha.sigmoid()
            mixed: Tensor = a * base + (1 - a) * side(pixels)
            return mixed

        clip.model.encode_image = blended
        return {"alpha": alpha, **dict(side.named_parameters())}, ()
