"""LoRA-Pro: steps of A and B that move W + s B A as nearly as they can along its full gradient.

Wang et al., "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", ICLR 2025,
https://arxiv.org/abs/2407.18242. With B (m, r), A (r, n), P = B^T B, Q = A A^T and the gradients
gA = s B^T g, gB = s g A^T of the factors, where g (m, n) is that of the matrix and never formed,
the steps, in which any X (r, r) is as good,

    uA = P^-1 gA / s^2 + X A
    uB = (gB - B P^-1 B^T gB) Q^-1 / s^2 - B X

make s (B uA + uB A), by which the matrix moves, the nearest to g that there is. Differs from the
authors' code in that P and Q, being symmetric, are solved with by `eigh` rather than by a general
complex decomposition; that steps are counted from 1, where theirs start Adam's correction at 2;
that the frozen matrix is not decayed; and that s is what the pair says, where theirs is 2 always.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cache.errors import UserError, unknown

Mode = Literal["full", "sgd", "efficient"]
Choice = Literal["sylvester", "symmetry", "zero"]


class LoRAProSteps:
    """The closed form at N pairs of equal shapes: A (N, r, n), B (N, m, r), scales (N,).

    All that is as small as the factors is in double precision, because P is as small as the square
    of a B that starts at zero; what has the shape of the matrices keeps the factors' type. At B = 0
    the formulas need no exception: gA is zero then, and damping keeps P invertible.
    """

    def __init__(self, A: Tensor, B: Tensor, scale: Tensor, damping: float = 1e-8) -> None:
        self.A, self.B = A.double(), B.double()
        self.scale = scale.to(A.device).double()[:, None, None]
        self.type, self.damping = A.dtype, damping
        self.l, self.U = _eigh(self.B.mT @ self.B)
        self.m, self.V = _eigh(self.A @ self.A.mT)
        self.P_inverse = (self.U / (self.l + damping)[:, None]) @ self.U.mT
        self.Q_inverse = (self.V / (self.m + damping)[:, None]) @ self.V.mT

    def steps(self, gA: Tensor, gB: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """The factors' steps, as uA and uB, of their gradients."""
        A, B, s2 = self.A, self.B, self.scale**2
        gA, gB = gA.double(), gB.double()
        uA = self.P_inverse @ gA / s2
        uB = (gB - B @ (self.P_inverse @ (B.mT @ gB))) @ self.Q_inverse / s2
        if choice != "zero":
            X = self._sylvester(uA) if choice == "sylvester" else -uA @ A.mT @ self.Q_inverse / 2
            uA, uB = uA + X @ A, uB - B @ X
        return uA.to(self.type), uB.to(self.type)

    def _sylvester(self, uA: Tensor) -> Tensor:
        """The X of least |uA - gA|^2 + |uB - gB|^2: P X + X Q = -P^-1 gA A^T / s^2."""
        right: Tensor = self.U.mT @ -(uA @ self.A.mT) @ self.V
        return self.U @ (right / (self.l[:, :, None] + self.m[:, None] + self.damping)) @ self.V.mT

    def of_full(self, g: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """The same of the matrices' gradients (N, m, n)."""
        A, B = self.A.to(self.type), self.B.to(self.type)
        return self.steps(self.scale * (B.mT @ g), self.scale * (g @ A.mT), choice)

    def moved(self, uA: Tensor, uB: Tensor) -> Tensor:
        """How the matrices move by such steps: s (B uA + uB A), (N, m, n)."""
        A, B, uA, uB = (x.to(self.type) for x in (self.A, self.scale * self.B, uA, self.scale * uB))
        return torch.baddbmm(B @ uA, uB, A)


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and vectors of positive semi-definite (N, r, r)."""
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp(min=0), vectors


class FactorPair(NamedTuple):
    """The factors of one update s B A, and s."""

    A: nn.Parameter
    B: nn.Parameter
    scale: float


class LoRAPro(Optimizer):
    """Gradient descent on pairs by the equivalent gradient of the matrices they update.

    full: AdamW. Its moments are those of the equivalent gradient, of the matrix's shape, and its
    step is taken for a full gradient in turn. sgd: no moments. efficient: Adam's moments of uA and
    uB, small, but the early uA are as large as B is small and the second moment remembers them.

    Pairs of equal shapes form one parameter group and are computed together. Weight decay
    multiplies both factors by sqrt(1 - lr weight_decay), so that the update decays as AdamW would
    have it: toward the model as it was.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[nn.Parameter, nn.Parameter, float]],
        lr: float,
        *,
        mode: Mode = "full",
        choice: Choice = "sylvester",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        damping: float = 1e-8,
    ) -> None:
        """Over `pairs` of A, B and s, in any order.

        Args:
            pairs: A (r, n), B (m, r) and the scale s of their product.
            lr: Learning rate.
            mode: What Adam's moments are of; see the class.
            choice: Of X: `sylvester` keeps the steps nearest to the plain gradients, `symmetry`
                shares the overlap out evenly, `zero` leaves it to A.
            betas: Adam's.
            eps: Adam's.
            weight_decay: Decoupled.
            damping: Added to the eigenvalues of P and Q.

        Raises:
            UserError: No pair, an unknown word or a number out of range.
        """
        if mode not in get_args(Mode):
            raise unknown("mode", mode, get_args(Mode))
        if choice not in get_args(Choice):
            raise unknown("choice of X", choice, get_args(Choice))
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} must be 0 or more; got {value}")
        if not damping > 0:
            raise UserError(f"damping must be above 0, as B starts at 0; got {damping}; try 1e-8")
        shapes: dict[tuple[torch.Size, torch.Size], list[FactorPair]] = {}
        for pair in pairs:
            shapes.setdefault((pair[0].shape, pair[1].shape), []).append(FactorPair(*pair))
        if not shapes:
            raise UserError("no pair to train; attach some first")
        groups = [
            {"params": [p for pair in alike for p in pair[:2]], "scales": [x.scale for x in alike]}
            for alike in shapes.values()
        ]
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.mode, self.choice, self.damping = mode, choice, damping

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every pair; the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        """Move the pairs of one group."""
        factors = group["params"]
        shrink = math.sqrt(1 - group["lr"] * group["weight_decay"])
        A, B = (torch.stack([p * shrink for p in factors[i::2]]) for i in (0, 1))
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in factors]
        gA, gB = (torch.stack(slopes[i::2]) for i in (0, 1))
        at = LoRAProSteps(A, B, torch.tensor(group["scales"], dtype=torch.float64), self.damping)
        state = self.state[factors[0]]
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        if self.mode == "full":
            equivalent = at.moved(*at.steps(gA, gB, "zero"))  # the same for every X
            uA, uB = at.of_full(_adam(equivalent, state, group), self.choice)
        else:
            uA, uB = at.steps(gA, gB, self.choice)
            if self.mode == "efficient":
                uA, uB = (_adam(u, state, group, of) for u, of in ((uA, "_A"), (uB, "_B")))
        for new, old in (
            (A - group["lr"] * uA, factors[::2]),
            (B - group["lr"] * uB, factors[1::2]),
        ):
            for parameter, value in zip(old, new, strict=True):
                parameter.copy_(value)


def _adam(g: Tensor, state: dict[str, Any], group: dict[str, Any], of: str = "") -> Tensor:
    """Adam's direction for gradients g, whose moments it updates; overwrites g."""
    first, second = group["betas"]
    if f"mean{of}" not in state:
        state[f"mean{of}"], state[f"square{of}"] = torch.zeros_like(g), torch.zeros_like(g)
    mean, square, step = state[f"mean{of}"], state[f"square{of}"], float(state["step"])
    mean.lerp_(g, 1 - first)
    square.mul_(second).addcmul_(g, g, value=1 - second)
    torch.div(square, 1 - second**step, out=g).sqrt_().add_(group["eps"])
    return torch.div(mean, g, out=g).div_(1 - first**step)
