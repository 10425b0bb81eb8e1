"""Full delta: W + D, with D as large as W and zero at first.

Weight decay of D pulls to the pretrained weights: it is what L2-SP's penalty is,
https://arxiv.org/abs/1802.01483, decoupled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewshot.endtoend.parts.weight_delta import OnMatrices, WeightDelta


class FullDeltaLinear(WeightDelta):
    """A matrix and its update.

    Attributes:
        D: As large as the matrix, zero at first.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self.D = nn.Parameter(torch.zeros_like(plain.weight))

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + D."""
        return self.weight + self.D, self.plain.bias


@dataclass(frozen=True)
class FullDelta(OnMatrices):
    """An update as large as the matrix: fine-tuning that decays to the pretrained weights."""

    matrices: str = "q,k,v,o,fc1,fc2"
    lr: float = 1e-5
    weight_decay: float = 0.1

    name: ClassVar[str] = "full-delta"
    summary: ClassVar[str] = "As full-fine-tuning, held near the weights that the model came with."

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + D."""
        return {path: FullDeltaLinear(layer) for path, layer in plain.items()}
