"""An implicit layer: z = tanh(W z + U x + b), found by iteration, with the exact gradient.

W is kept at a spectral norm below 1, and tanh stretches nothing, so the map is a contraction: there
is one such z, plain iteration reaches it from anywhere (Banach), and the gradient's linear equation
has one solution, which the same iteration finds (Bai et al., "Deep Equilibrium Models", NeurIPS
2019, https://arxiv.org/abs/1909.01377). Nothing is unrolled, so memory does not depend on how many
iterations there were.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewshot.endtoend.parts.vit import linear

BOUND = 0.9  # of the spectral norm


class Equilibrium(torch.autograd.Function):
    """(N, d) solutions of z = tanh(z W^T + u), of u (N, d) and W (d, d) with a norm below 1."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor) -> Tensor:
        """Solve it from zero."""
        z = fixed_point(lambda z: (z @ weight.T + u).tanh(), torch.zeros_like(u))
        ctx.save_for_backward(weight, z)
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Of W and u, by v = (g + v W) tanh': the implicit function theorem."""
        weight, z = ctx.saved_tensors
        slope = 1 - z.square()
        v = fixed_point(lambda v: slope * (gradient + v @ weight), slope * gradient)
        return v.T @ z, v


def fixed_point(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(N, d) where a contraction stands still: no row moves by more than 10 roundings.

    By a factor of 0.9 a step shrinks that far in 130 iterations of float32 and in 320 of float64. A
    graph that is exported cannot look at numbers, and has those 130.
    """
    if torch.compiler.is_exporting():
        for _ in range(130):
            x = step(x)
        return x
    for _ in range(400):
        before, x = x, step(x)
        moved = float((x - before).norm(dim=1).max())
        if not moved > 10 * torch.finfo(x.dtype).eps * float(x.norm(dim=1).max()):
            break
    return x


def norm_bound(matrix: Tensor) -> Tensor:
    """A scalar between the spectral norm of a matrix (d, d) and d^(1/1024) times that.

    It is the Schatten norm of order 1024, the root of the trace of (W^T W)^512. Unlike the largest
    singular value it has a gradient where two of these are equal, and any graph can hold it.
    """
    power, log = matrix.T @ matrix, torch.zeros_like(matrix[0, 0])
    for k in range(1, 11):
        trace = power.trace().clamp_min(torch.finfo(power.dtype).tiny)
        log = log + trace.log() / 2**k
        power = (power / trace) @ (power / trace)
    return log.exp()


class ImplicitLayer(nn.Module):
    """V z + c of the z of each input; zero at first.

    Attributes:
        inject: U and b.
        state: (d, d); W is this, made smaller where its `norm_bound` is above `BOUND`.
        out: V and c.
    """

    def __init__(self, width: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inject = linear(width, dim, generator)
        bound = 1 / math.sqrt(width)
        nn.init.uniform_(self.inject.bias, -bound, bound, generator=generator)
        self.state = linear(dim, dim, generator, bias=False).weight
        self.out = linear(dim, width, None)

    def weight(self) -> Tensor:
        """W (d, d)."""
        bounded: Tensor = self.state * (BOUND / norm_bound(self.state).clamp_min(BOUND))
        return bounded

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) of (N, width), in the precision of the weights, autocast or not."""
        with torch.autocast(x.device.type, enabled=False):
            z: Tensor = Equilibrium.apply(self.weight(), self.inject(x.to(self.state.dtype)))
            out: Tensor = self.out(z)
        return out
