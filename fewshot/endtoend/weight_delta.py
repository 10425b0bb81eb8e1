"""Small updates of frozen weights, each a module that stands in for the one it updates.

All of them are affine in what the frozen module puts out or takes in, so `fold` turns each back
into plain weights of the same function.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cache.errors import UserError


class WeightDelta(nn.Module):
    """A frozen module and an update of it.

    Attributes:
        plain: The module, with a weight, and a bias or None.
        shared: Factors that it has in common with other updates.
    """

    def __init__(self, plain: nn.Module, shared: nn.ParameterDict | None = None) -> None:
        super().__init__()
        self.plain: Any = plain.requires_grad_(False)
        self.shared = nn.ParameterDict() if shared is None else shared

    @property
    def weight(self) -> Tensor:
        """The frozen weight; open_clip looks at its type."""
        weight: Tensor = self.plain.weight
        return weight

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a plain module of the same function."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """As `plain` with the folded weights; for a Linear."""
        return linear(x, *self.folded())

    @torch.no_grad()
    def fold(self) -> None:
        """Put the update into the frozen weights."""
        weight, bias = self.eval().folded()
        self.plain.weight = nn.Parameter(weight, requires_grad=False)
        self.plain.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


class FullDelta(WeightDelta):
    """W + D, D as large as W and zero at first: weight decay pulls to the pretrained weights."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self.D = nn.Parameter(torch.zeros_like(plain.weight))

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + D."""
        return self.weight + self.D, self.plain.bias


class KronA(WeightDelta):
    """W + s A kron B. Edalati et al., 2022, https://arxiv.org/abs/2212.10650.

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
        rows, columns = _divided(plain, factor)
        self.A = nn.Parameter(plain.weight.new_zeros(factor, factor))
        self.B = nn.Parameter(_drawn(rows, columns, generator).to(plain.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in), without the product: vec(Y) = (A kron B) vec(X) is A X B'."""
        cut = _split(x, self.A.shape[1])
        update = linear(linear(cut, self.B).transpose(-1, -2), self.A).transpose(-1, -2)
        y: Tensor = self.plain(x)
        return y + self.scale * update.flatten(-2)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + s A kron B."""
        return self.weight + self.scale * torch.kron(self.A, self.B), self.plain.bias


class KAdaptation(WeightDelta):
    """W + s sum_i (p_i q_i') kron (u_i v_i'), and a bias. He et al., AAAI 2023.

    https://arxiv.org/abs/2203.16329. p and q are one set for all matrices of a tower, as they
    come out in the authors' code, where the values' matrices use what was made for the queries'.
    Here u is zero at first and v is drawn: were both zero, neither would ever have a gradient.

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
        rows, columns = _divided(plain, factor)
        self.U = nn.Parameter(plain.weight.new_zeros(terms, rows))
        self.V = nn.Parameter(_drawn(terms, columns, generator).to(plain.weight))
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


class FacT(WeightDelta):
    """y + s V S U x, with U and V one for all matrices. Jie and Deng, AAAI 2023.

    https://arxiv.org/abs/2212.03145. A matrix that is m x n times the width d, such as the MLP's,
    counts as m n matrices, each with an S of its own. FacT-TT has every S free; in FacT-TK they
    are mixtures sum_i P_ij C_i of r matrices for all.

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
            drawn = _drawn(self.out * rank, self.into * rank, generator)
            self.S = nn.Parameter(drawn.to(plain.weight))

    @staticmethod
    def shared_factors(
        linears: Sequence[nn.Linear], rank: int, generator: torch.Generator, *, tucker: bool
    ) -> nn.ParameterDict:
        """U drawn as `nn.Linear` draws its weight, V zero; C and P Xavier-uniform."""
        like = linears[0].weight
        width = math.gcd(*(n for x in linears for n in (x.in_features, x.out_features)))
        factors = {"U": _drawn(rank, width, generator), "V": torch.zeros(width, rank)}
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
        down = linear(_split(x, self.into), self.shared["U"]).flatten(-2)
        mixed = _split(self.dropout(linear(down, self.core())), self.out)
        y: Tensor = self.plain(x)
        return y + self.scale * linear(mixed, self.shared["V"]).flatten(-2)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + s V S U, block by block."""
        rank = len(self.shared["U"])
        blocks = self.core().view(self.out, rank, self.into, rank)
        update = torch.einsum("dr,mrns,se->mdne", self.shared["V"], blocks, self.shared["U"])
        return self.weight + self.scale * update.reshape(self.weight.shape), self.plain.bias


class SSF(WeightDelta):
    """gamma y + beta per channel of what a module puts out. Lian et al., NeurIPS 2022.

    https://arxiv.org/abs/2210.08823. It stands in for a Linear, LayerNorm, Conv2d, or BatchNorm2d.

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


class Gain(WeightDelta):
    """gamma y, one number for all channels, at first 1. DiffFit, https://arxiv.org/abs/2304.06648.

    Attributes:
        gamma: The number.
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


class RepAdapter(WeightDelta):
    """x + s (B (A x + a) + b) between a norm and the matrices it feeds. Luo et al., 2023.

    https://arxiv.org/abs/2302.08106. It stands in for the norm; `fold` puts it into the matrices,
    W (I + s B A). B is made of g blocks, each of which writes a share of the channels.

    Attributes:
        A: (h, d), Xavier-uniform.
        a: (h,), zero at first.
        B: (g, d / g, h / g), zero at first.
        b: (d,), zero at first.
        scale: s.
        dropout: Of A x + a, in training.
        followers: The matrices.
    """

    def __init__(
        self,
        plain: nn.LayerNorm,
        followers: Sequence[nn.Linear],
        hidden: int,
        groups: int,
        scale: float,
        *,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(plain)
        # A tuple, so that the matrices do not count as this module's.
        self.followers = tuple(followers)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        width = len(plain.weight)
        if hidden % groups or width % groups:
            raise UserError(
                f"groups must divide dim and the tower's width; got {groups} for {hidden} and "
                f"{width}; use 1 or 2 groups"
            )
        drawn = nn.init.xavier_uniform_(torch.empty(hidden, width), generator=generator)
        self.A = nn.Parameter(drawn.to(plain.weight))
        self.a = nn.Parameter(plain.weight.new_zeros(hidden))
        self.B = nn.Parameter(plain.weight.new_zeros(groups, width // groups, hidden // groups))
        self.b = nn.Parameter(plain.weight.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """The norm's output and the update of it."""
        x = self.plain(x)
        hidden = _split(self.dropout(linear(x, self.A, self.a)), len(self.B))
        update = torch.einsum("...gh,gdh->...gd", hidden, self.B).flatten(-2) + self.b
        return x + self.scale * update

    @torch.no_grad()
    def fold(self) -> None:
        """Leave the norm as it is and put the update into the matrices after it."""
        up: Tensor = torch.block_diag(*self.B)  # type: ignore[no-untyped-call]  # (d, h)
        for follower in self.followers:
            weight: Tensor = follower.weight
            bias: Tensor | None = follower.bias
            shift = self.scale * weight @ (up @ self.a + self.b)
            follower.weight = nn.Parameter(
                weight + self.scale * weight @ up @ self.A, requires_grad=False
            )
            follower.bias = nn.Parameter(
                shift if bias is None else bias + shift, requires_grad=False
            )


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of the one at that path."""
    parent, _, leaf = path.rpartition(".")
    new.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), leaf, new)


def fold(model: nn.Module) -> None:
    """Put every update in the model into plain weights of the same function, in place."""
    for path, delta in list(model.named_modules()):
        if isinstance(delta, WeightDelta):
            delta.fold()
            replace(model, path, delta.plain)


def _divided(plain: nn.Linear, factor: int) -> tuple[int, int]:
    """Output and input features over the factor."""
    if factor < 1 or plain.out_features % factor or plain.in_features % factor:
        raise UserError(
            f"factor must divide a matrix's {plain.out_features} and {plain.in_features} features; "
            f"got {factor}; use such as 8 or 16"
        )
    return plain.out_features // factor, plain.in_features // factor


def _split(x: Tensor, parts: int) -> Tensor:
    """(..., parts, n / parts) of (..., n)."""
    return x.reshape(*x.shape[:-1], parts, -1)


def _drawn(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """As `nn.Linear` draws its weight."""
    drawn = torch.empty(rows, columns)
    return nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
