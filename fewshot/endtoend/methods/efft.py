"""EFFT: y + s V' C_j U' x, with U, V and a core C_j for each kind of matrix, one for all blocks.

Chen, "EFFT: Effective Factor-Tuning", 2023, https://arxiv.org/abs/2311.06749. Attention's matrices
have one U and V and the MLP's have another; the second matrix of the MLP gets the transpose of a
product that is of the first one's shape. So a kind of matrix has the same update in every block. As
in the authors' code V is zero at first, U and C are Xavier-uniform, and dropout is of the factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.checks import fraction, positive, whole
from fewshot.endtoend.parts.blocks import IN_BLOCK
from fewshot.endtoend.parts.weight_delta import OnMatrices, WeightDelta

MLP = ("fc1", "fc2")


class EFFTLinear(WeightDelta):
    """A matrix and the product of factors that it has in common with its kind in all blocks.

    Attributes:
        shared: U (in, r), C (kinds, r, r) and V (r, out), of names that begin with the group's.
        group: `attn` or `mlp`.
        kind: Row of C.
        transposed: The update is the product itself, not its transpose.
        scale: s.
        dropout: Of each factor, in training.
    """

    def __init__(
        self,
        plain: nn.Linear,
        shared: nn.ParameterDict,
        group: str,
        kind: int,
        *,
        transposed: bool,
        scale: float,
        dropout: float,
    ) -> None:
        super().__init__(plain, shared)
        self.group, self.kind, self.transposed = group, kind, transposed
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + s (U C V)^T."""
        U, C, V = (self.dropout(self.shared[f"{self.group}_{name}"]) for name in "UCV")
        product = U @ C[self.kind] @ V  # (in, out)
        update = product if self.transposed else product.T
        return self.weight + self.scale * update, self.plain.bias


@dataclass(frozen=True)
class EFFT(OnMatrices):
    """Low-rank updates, the same for a kind of matrix in every block.

    The authors choose rank (8, 16 or 32), scale (0.01 to 100) and which factor is zero for each
    dataset.

    Attributes:
        rank: Rank of the update, r.
        scale: Scale of the addition, s.
        dropout: Share of each factor's numbers that are zeroed in training.
    """

    matrices: str = "q,k,v,o,fc1,fc2"
    weight_decay: float = 1e-4
    rank: int = 16
    scale: float = 1.0
    dropout: float = 0.1

    name: ClassVar[str] = "efft"
    summary: ClassVar[str] = "As fact, with the same additions in every layer."

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "rank")
        positive(self, "scale")
        fraction(self, "dropout", below_one=True)

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s (U C V)^T."""
        chosen = [matrix for matrix in IN_BLOCK if matrix in self.matrices.split(",")]
        deltas: dict[str, WeightDelta] = {}
        for group, members in (("attn", "qkvo"), ("mlp", MLP)):
            kinds = [matrix for matrix in chosen if matrix in members]
            if not kinds:
                continue
            of_group = {  # matrices come block by block, in the order of those chosen
                path: (kinds.index(matrix), layer)
                for (path, layer), matrix in zip(plain.items(), chosen * len(plain), strict=False)
                if matrix in members
            }
            shared = self._shared(
                group, kinds, [layer for _, layer in of_group.values()], generator
            )
            for path, (kind, layer) in of_group.items():
                deltas[path] = EFFTLinear(
                    layer, shared, group, kind, transposed=kinds[kind] == "fc2",
                    scale=self.scale, dropout=self.dropout,
                )  # fmt: skip
        return deltas

    def _shared(
        self, group: str, kinds: list[str], layers: list[nn.Linear], generator: torch.Generator
    ) -> nn.ParameterDict:
        """The factors of a group."""
        like = layers[0].weight
        shapes = {
            (x.out_features, x.in_features) if kinds[i % len(kinds)] == "fc2" else
            (x.in_features, x.out_features)
            for i, x in enumerate(layers)
        }  # fmt: skip
        if len(shapes) > 1:
            raise UserError(
                "efft shares factors among matrices of one shape; got "
                f"{', '.join(f'{n} to {m}' for n, m in sorted(shapes))}; choose some of them with "
                "--set matrices"
            )
        [(n_in, n_out)] = shapes
        factors = {
            "U": torch.empty(n_in, self.rank),
            "C": torch.empty(len(kinds), self.rank, self.rank),
            "V": torch.zeros(self.rank, n_out),
        }
        nn.init.xavier_uniform_(factors["U"], generator=generator)
        for core in factors["C"]:
            nn.init.xavier_uniform_(core, generator=generator)
        return nn.ParameterDict(
            {f"{group}_{name}": nn.Parameter(x.to(like)) for name, x in factors.items()}
        )
