"""DiffFit: biases, norms, and gamma y for what each half of each block adds, gamma one number.

Xie et al., 2023, https://arxiv.org/abs/2304.06648, made for diffusion; the gains start at 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import towers_of
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.select import select
from fewshot.endtoend.parts.weight_delta import WeightDelta, linears, put


class Gain(WeightDelta):
    """A matrix and one number for all channels of what it puts out.

    Attributes:
        gamma: The number, at first 1.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self.gamma = nn.Parameter(plain.weight.new_ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in)."""
        y: Tensor = self.plain(x)
        return self.gamma * y

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Gamma W and gamma b."""
        bias = self.plain.bias
        return self.gamma * self.weight, None if bias is None else self.gamma * bias


@dataclass(frozen=True)
class DiffFit(PEFTMethod):
    """Biases, norms, and a gain on what each half of each block adds."""

    name: ClassVar[str] = "difffit"
    summary: ClassVar[str] = (
        "Adjusts the model's offsets and norms, and how much each layer counts."
    )
    unfoldable: ClassVar[str] = ""

    def insert(self, clip: Clip) -> Inserted:
        """The gains stand at the output matrices of attention and MLP."""
        gains: dict[str, WeightDelta] = {
            path: Gain(layer)
            for tower in towers_of(self.towers)
            for path, layer in linears(clip.model, tower, "o,fc2", "all").items()
        }
        parameters, _ = put(clip.model, gains)
        biases = select(clip.model, self.towers, "biases")
        return {**parameters, **biases, **select(clip.model, self.towers, "norms")}, ()
