"""FacT: y + s V S U x, with U and V one for all matrices of a tower.

Jie and Deng, AAAI 2023, https://arxiv.org/abs/2212.03145. A matrix that is m x n times the width d,
such as the MLP's, counts as m n matrices, each with an S of its own. FacT-TT has every S free; in
FacT-TK they are mixtures sum_i P_ij C_i of r matrices for all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewshot.checks import fraction, positive, whole
from fewshot.endtoend.parts.weight_delta import (
    OnMatrices,
    WeightDelta,
    drawn_weight,
    split,
)


class FacTLinear(WeightDelta):
    """A matrix and its product of factors.

    Attributes:
        shared: U (r, d) and V (d, r), and FacT-TK's C (r, r, r) and P (r, number of S).
        S: FacT-TT's, (m r, n r) as one, drawn as `nn.Linear` draws its weight; else None.
        slots: Columns of FacT-TK's P.
        scale: s.
        dropout: Of what S puts out, in training.
    """

    def __init__(
        self,
        plain: nn.Linear,
        shared: nn.ParameterDict,
        scale: float,
        *,
        dropout: float,
        generator: torch.Generator,
        first_slot: int | None = None,
    ) -> None:
        super().__init__(plain, shared)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        rank, width = shared["U"].shape
        self.into, self.out = plain.in_features // width, plain.out_features // width
        self.slots = slice(first_slot, (first_slot or 0) + self.into * self.out)
        self.S: nn.Parameter | None = None
        if first_slot is None:
            drawn = drawn_weight(self.out * rank, self.into * rank, generator)
            self.S = nn.Parameter(drawn.to(plain.weight))

    @staticmethod
    def shared_factors(
        linears: Sequence[nn.Linear], rank: int, generator: torch.Generator, *, tucker: bool
    ) -> nn.ParameterDict:
        """U drawn as `nn.Linear` draws its weight, V zero; C and P Xavier-uniform."""
        like = linears[0].weight
        width = math.gcd(*(n for x in linears for n in (x.in_features, x.out_features)))
        factors = {"U": drawn_weight(rank, width, generator), "V": torch.zeros(width, rank)}
        if tucker:
            slots = sum(x.in_features * x.out_features for x in linears) // width**2
            factors["C"], factors["P"] = torch.empty(rank, rank, rank), torch.empty(rank, slots)
            for name in "CP":
                nn.init.xavier_uniform_(factors[name], generator=generator)
        return nn.ParameterDict({n: nn.Parameter(t.to(like)) for n, t in factors.items()})

    def core(self) -> Tensor:
        """S, (m r, n r)."""
        if self.S is not None:
            return self.S
        mixed = torch.einsum("kij,ks->sij", self.shared["C"], self.shared["P"][:, self.slots])
        blocks = mixed.view(self.out, self.into, *mixed.shape[1:])
        return blocks.transpose(1, 2).flatten(2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in), through r dimensions."""
        down = linear(split(x, self.into), self.shared["U"]).flatten(-2)
        mixed = split(self.dropout(linear(down, self.core())), self.out)
        y: Tensor = self.plain(x)
        return y + self.scale * linear(mixed, self.shared["V"]).flatten(-2)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + s V S U, block by block."""
        rank = len(self.shared["U"])
        blocks = self.core().view(self.out, rank, self.into, rank)
        update = torch.einsum("dr,mrns,se->mdne", self.shared["V"], blocks, self.shared["U"])
        return self.weight + self.scale * update.reshape(self.weight.shape), self.plain.bias


@dataclass(frozen=True)
class FacT(OnMatrices):
    """Low-rank updates whose outer factors all matrices of a tower share.

    The authors choose rank (16 or 32) and scale (0.01 to 100) for each dataset.

    Attributes:
        rank: Rank of the update, r.
        scale: Scale of the addition, s.
        tucker: Take the inner factors from r common ones as well (FacT-TK instead of FacT-TT).
        dropout: Share of the inner factors' outputs that are zeroed in training.
    """

    matrices: str = "q,k,v,o,fc1,fc2"
    weight_decay: float = 1e-4
    rank: int = 16
    scale: float = 1.0
    tucker: bool = False
    dropout: float = 0.1

    name: ClassVar[str] = "fact"
    summary: ClassVar[str] = "As clip-lora, with most of the additions shared by all layers."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "rank")
        positive(self, "scale")
        fraction(self, "dropout", below_one=True)

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s V S U."""
        shared = FacTLinear.shared_factors(
            list(plain.values()), self.rank, generator, tucker=self.tucker
        )
        deltas: dict[str, WeightDelta] = {}
        slot = 0
        for path, layer in plain.items():
            delta = FacTLinear(
                layer,
                shared,
                self.scale,
                dropout=self.dropout,
                generator=generator,
                first_slot=slot if self.tucker else None,
            )
            deltas[path] = delta
            slot += delta.into * delta.out
        return deltas
