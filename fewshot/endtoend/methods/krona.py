"""KronA: W + s A kron B.

Edalati et al., 2022, https://arxiv.org/abs/2212.10650.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewshot.checks import positive, whole
from fewshot.endtoend.parts.weight_delta import (
    OnMatrices,
    WeightDelta,
    divided,
    drawn_weight,
    split,
)


class KronALinear(WeightDelta):
    """A matrix and its Kronecker product.

    Attributes:
        A: (k, k), zero at first.
        B: (out / k, in / k), drawn as `nn.Linear` draws its weight.
        scale: s.
    """

    def __init__(
        self, plain: nn.Linear, factor: int, scale: float, *, generator: torch.Generator
    ) -> None:
        super().__init__(plain)
        self.scale = scale
        rows, columns = divided(plain, factor)
        self.A = nn.Parameter(plain.weight.new_zeros(factor, factor))
        self.B = nn.Parameter(drawn_weight(rows, columns, generator).to(plain.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in), without the product: vec(Y) = (A kron B) vec(X) is A X B'."""
        cut = split(x, self.A.shape[1])
        update = linear(linear(cut, self.B).transpose(-1, -2), self.A).transpose(-1, -2)
        y: Tensor = self.plain(x)
        return y + self.scale * update.flatten(-2)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + s A kron B."""
        return self.weight + self.scale * torch.kron(self.A, self.B), self.plain.bias


@dataclass(frozen=True)
class KronA(OnMatrices):
    """One Kronecker product per matrix.

    Attributes:
        factor: Rows and columns of the product's first factor.
        scale: Scale of the addition, s.
    """

    factor: int = 32
    scale: float = 1.0

    name: ClassVar[str] = "krona"
    summary: ClassVar[str] = "Adjusts the model by very small additions to its weights."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "factor")
        positive(self, "scale")

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s A kron B."""
        return {
            path: KronALinear(layer, self.factor, self.scale, generator=generator)
            for path, layer in plain.items()
        }
