"""SSF: gamma y + beta per channel of what a module puts out.

Lian et al., NeurIPS 2022, https://arxiv.org/abs/2210.08823.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import non_negative
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import blocks_path, towers_of
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.weight_delta import WeightDelta, put


class ScaleShift(WeightDelta):
    """A Linear, LayerNorm, Conv2d, or BatchNorm2d, and what scales and shifts its output.

    Attributes:
        gamma: (out,), at first N(1, noise^2).
        beta: (out,), at first N(0, noise^2).
    """

    def __init__(self, plain: nn.Module, noise: float, *, generator: torch.Generator) -> None:
        super().__init__(plain)
        like = self.weight
        drawn = noise * torch.randn(2, len(like), generator=generator)
        self.gamma = nn.Parameter((1 + drawn[0]).to(like))
        self.beta = nn.Parameter(drawn[1].to(like))

    def forward(self, x: Tensor) -> Tensor:
        """Channels are last, or first after the batch for images."""
        y: Tensor = self.plain(x)
        if isinstance(self.plain, nn.Conv2d | nn.BatchNorm2d):
            return y * self.gamma[:, None, None] + self.beta[:, None, None]
        return y * self.gamma + self.beta

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The diagonal of gamma times W, and gamma b + beta."""
        bias = self.beta if self.plain.bias is None else self.gamma * self.plain.bias + self.beta
        return self.gamma.view(-1, *[1] * (self.weight.ndim - 1)) * self.weight, bias


@dataclass(frozen=True)
class SSF(PEFTMethod):
    """A gain and an offset for every channel of what every layer puts out.

    Attributes:
        noise: Deviation from 1 and 0 of the gains and offsets at the start, where the authors have
            0.02; 0 starts from CLIP as it is.
    """

    lr: float = 1e-2
    weight_decay: float = 0.0  # the authors decay matrices alone, and there is none here
    noise: float = 0.0

    name: ClassVar[str] = "ssf"
    summary: ClassVar[str] = "Scales and shifts what every layer of the model puts out."
    unfoldable: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        non_negative(self, "noise", hint="the authors' is 0.02")

    def insert(self, clip: Clip) -> Inserted:
        """After every matrix, norm and convolution of the tower."""
        generator = torch.Generator().manual_seed(self.seed)
        towers = towers_of(self.towers)
        for path, parameter in clip.model.named_parameters():
            if (
                parameter.requires_grad
                and ("image" if path.startswith("visual.") else "text") in towers
            ):
                raise UserError(
                    f"ssf scales what CLIP's own layers put out; {path} is trained already; attach "
                    "ssf first"
                )
        for tower in towers:
            if tower == "text" or not hasattr(clip.model.visual, "attnpool"):
                blocks_path(clip.model, tower, self.name)
        kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d)
        return put(
            clip.model,
            {
                path: ScaleShift(module, self.noise, generator=generator)
                for tower in towers
                for path, module in clip.model.named_modules()
                if isinstance(module, kinds) and path.startswith("visual.") == (tower == "image")
            },
        )
