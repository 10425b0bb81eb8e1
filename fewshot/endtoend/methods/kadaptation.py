"""KAdaptation: W + s sum_i (p_i q_i') kron (u_i v_i'), and a bias.

He et al., AAAI 2023, https://arxiv.org/abs/2203.16329. p and q are one set for all matrices of a
tower, as they come out in the authors' code, where the values' matrices use what was made for the
queries'. Here u is zero at first and v is drawn: were both zero, neither would ever have a
gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewshot.checks import fraction, positive, whole
from fewshot.endtoend.parts.weight_delta import (
    OnMatrices,
    WeightDelta,
    divided,
    drawn_weight,
)


class KAdaptationLinear(WeightDelta):
    """A matrix, its sum of Kronecker products and its bias.

    Attributes:
        shared: P and Q, (n, k) each.
        U: (n, out / k), zero at first.
        V: (n, in / k).
        b: (out,), zero at first.
        scale: s.
        dropout: Of entries of the update, in training.
    """

    def __init__(
        self,
        plain: nn.Linear,
        shared: nn.ParameterDict,
        scale: float,
        *,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(plain, shared)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        terms, factor = shared["P"].shape
        rows, columns = divided(plain, factor)
        self.U = nn.Parameter(plain.weight.new_zeros(terms, rows))
        self.V = nn.Parameter(drawn_weight(terms, columns, generator).to(plain.weight))
        self.b = nn.Parameter(plain.weight.new_zeros(plain.out_features))

    @staticmethod
    def shared_factors(
        like: Tensor, terms: int, factor: int, generator: torch.Generator
    ) -> nn.ParameterDict:
        """P and Q, uniform in [-0.01, 0.01]."""
        drawn = torch.empty(2, terms, factor).uniform_(-0.01, 0.01, generator=generator).to(like)
        return nn.ParameterDict({"P": nn.Parameter(drawn[0]), "Q": nn.Parameter(drawn[1])})

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Each term has rank one: (p q') kron (u v') = (p kron u) (q kron v)'."""
        left = torch.einsum("np,nu->npu", self.shared["P"], self.U).flatten(1)  # (n, out)
        right = torch.einsum("nq,nv->nqv", self.shared["Q"], self.V).flatten(1)  # (n, in)
        update: Tensor = self.dropout(self.scale * left.T @ right)
        bias = self.b if self.plain.bias is None else self.plain.bias + self.b
        return self.weight + update, bias


@dataclass(frozen=True)
class KAdaptation(OnMatrices):
    """Sums of Kronecker products of rank-one matrices, one of which all matrices share.

    Attributes:
        terms: Products in the sum, n.
        factor: Rows and columns of the shared matrices.
        scale: Scale of the addition, s.
        dropout: Share of an update's entries that are zeroed in training.
    """

    terms: int = 32
    factor: int = 32
    scale: float = 160.0
    dropout: float = 0.5

    name: ClassVar[str] = "kadaptation"
    summary: ClassVar[str] = "As krona, with a part of the additions shared by all layers."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "terms", "factor")
        positive(self, "scale")
        fraction(self, "dropout", below_one=True)

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s sum_i (p_i q_i') kron (u_i v_i')."""
        like = next(iter(plain.values())).weight
        shared = KAdaptationLinear.shared_factors(like, self.terms, self.factor, generator)
        return {
            path: KAdaptationLinear(
                layer, shared, self.scale, dropout=self.dropout, generator=generator
            )
            for path, layer in plain.items()
        }
