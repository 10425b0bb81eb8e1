"""Logistic regression with an L2 penalty, exactly, along a path of penalties.

Multinomial where a sample has one class; a binary one for each class where it may have several.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewshot.parts.class_blocks import ClassBlocks, heaviest

FACTOR = math.sqrt(10)  # two solutions further apart than this get some in between to start from
LOOSE = 1e-1  # tolerance of those, which are found in single precision
BLOCK = 2**24  # logits worked on at once
MAX_HALVINGS = 30


@dataclass(frozen=True, eq=False)
class Solution:
    """The minimum of the objective.

    Attributes:
        weight: (C, D) float64.
        bias: (C,) float64, summing to zero where a sample has one class.
        passes: Passes over the samples that it took, from the solution before it.
        converged: True if the tolerance was met.
    """

    weight: Tensor
    bias: Tensor
    passes: int
    converged: bool


def logistic_path(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    strengths: Sequence[float],
    *,
    offset: Tensor | None = None,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Iterator[Solution]:
    """For each strength c, what minimizes |W|^2 / 2 + c sum_i CE(W x_i + b + o_i, y_i).

    CE is the cross-entropy of softmax; for label sets, the sum over the classes of that of sigmoid.
    But for the tolerance, a solution does not depend on the path that led there. Three things
    make it fast. Centered features, rotated to their principal axes, have the same optimum: b takes
    up the mean, and |W| does not mind a rotation; of N < D samples there are N axes. Each solution,
    extrapolated in log c from the two before it, is where the next one starts. From there Newton's
    method takes few steps, each by conjugate gradients preconditioned with the Hessian's diagonal
    and the samples that weigh most in each class, in single precision: that bounds how good a step
    is but not the result, as gradients and objective are in double.

    Args:
        features: (N, D).
        labels: (N,) class ids, or (N, C) bool label sets.
        n_classes: C.
        strengths: Ascending, no two alike.
        offset: (N, C) logits o to which those of the solution are added; none without it.
        tol: A solution's gradient, in the norm of the Hessian's inverse diagonal, is at most this
            times the root of the objective; so its objective is above the minimum by a share of
            about the tolerance squared.
        max_iter: Passes over the samples for each strength.
    """
    mean = features.double().mean(dim=0)
    centered = features.double() - mean
    n, dim = centered.shape
    if n >= dim:
        spectrum, basis = torch.linalg.eigh(centered.T @ centered)
        largest = float(spectrum[-1])
    else:
        _, singular, axes = torch.linalg.svd(centered, full_matrices=False)
        basis, largest = axes.T, float(singular[0] ** 2)
    one_each = labels.ndim == 1
    kind = _Problem if one_each else _BinaryProblems
    problem = kind(centered @ basis, labels, n_classes, offset)
    # Up to here the penalty is most of the curvature, and zero is near enough to start from.
    reached = 30 / max(largest, 1e-30) / FACTOR
    path: list[tuple[float, Tensor]] = []
    for strength in strengths:
        passes = 0
        while strength > reached * FACTOR * 1.01:
            reached *= FACTOR
            found, took, _ = problem.solve(path, reached, LOOSE, max_iter, exact=False)
            path, passes = [*path[-1:], (reached, found)], passes + took
        found, took, converged = problem.solve(path, strength, tol, max_iter)
        path, reached = [*path[-1:], (strength, found)], max(reached, strength)
        weight = (basis @ found[:-1]).T
        bias = found[-1] - weight @ mean
        # A constant on all classes' biases makes no difference: of these, the one that sums to 0.
        bias = bias - bias.mean() if one_each else bias
        yield Solution(weight, bias, passes + took, converged)


class _Problem:
    """Mean cross-entropy of the samples, and what Newton's method needs of it.

    Parameters are (R + 1, C): the weights of R features and, last, the biases.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, n_classes: int, offset: Tensor | None
    ) -> None:
        self.n = len(features)
        self.shape = features.shape[1] + 1, n_classes
        ones = torch.ones_like(features[:, :1])
        rows = max(1, BLOCK // n_classes)
        offsets = features.new_zeros(self.n, 1) if offset is None else offset
        # Both layouts, as products with a transposed matrix are much slower.
        self.blocks = [
            (part, part.T.contiguous(), part.float(), part.float().T.contiguous(), truth, added)
            for part, truth, added in zip(
                torch.split(torch.cat([features, ones], dim=1), rows),
                torch.split(labels, rows),
                torch.split(offsets, rows),
                strict=True,
            )
        ]

    def penalty(self, strength: float) -> Tensor:
        """(R + 1, 1) twice the weight of each parameter's square; 0 for the biases."""
        result: Tensor = self.blocks[0][0].new_full((self.shape[0], 1), 1 / (strength * self.n))
        result[-1] = 0
        return result

    def logits(self, w: Tensor, exact: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each block's features (R + 1, n), labels and logits (n, C), double or single."""
        for rows, columns, thin_rows, thin_columns, labels, offset in self.blocks:
            x, transposed = (rows, columns) if exact else (thin_rows, thin_columns)
            yield transposed, labels, x @ w.to(x) + offset.to(x)

    def value(
        self, w: Tensor, penalty: Tensor, *, exact: bool = True
    ) -> tuple[float, Tensor, list[Tensor]]:
        """Objective, gradient, and each block's probabilities (n, C) in single precision.

        In half of the time where the logits need not be exact.
        """
        loss, gradient, probabilities = 0.0, penalty * w, []
        for columns, labels, logits in self.logits(w, exact):
            log_p = torch.log_softmax(logits, dim=1)
            own = labels[:, None]
            loss -= float(log_p.gather(1, own).sum(dtype=torch.float64)) / self.n
            p = log_p.exp_()
            probabilities.append(p.to(torch.float32, copy=True))
            p.scatter_add_(1, own, -torch.ones_like(own, dtype=p.dtype))
            gradient += columns @ p / self.n
        return loss + float((penalty * w * w).sum()) / 2, gradient, probabilities

    def curvature(self, direction: Tensor, probabilities: list[Tensor]) -> Tensor:
        """The cross-entropy's Hessian times a direction, (R + 1, C), in single precision."""
        result = torch.zeros_like(direction)
        for (_, _, rows, columns, _, _), p in zip(self.blocks, probabilities, strict=True):
            change = rows @ direction
            change -= (p * change).sum(dim=1, keepdim=True)
            result += columns @ change.mul_(p)
        return result / self.n

    def diagonal(self, probabilities: list[Tensor]) -> Tensor:
        """The diagonal of that Hessian, (R + 1, C)."""
        result = probabilities[0].new_zeros(self.shape)
        for (_, _, _, columns, _, _), p in zip(self.blocks, probabilities, strict=True):
            result += columns.square() @ (p * (1 - p))
        return result / self.n

    def preconditioner(self, diagonal: Tensor, probabilities: list[Tensor]) -> ClassBlocks:
        """Of the whole objective, whose diagonal is given."""
        heavy = diagonal.new_empty(self.shape[1], 0, self.shape[0])
        for (_, _, rows, _, _, _), p in zip(self.blocks, probabilities, strict=True):
            heavy = heaviest(heavy, rows, p * (1 - p) / self.n)
        return ClassBlocks(diagonal, heavy)

    def solve(
        self,
        path: list[tuple[float, Tensor]],
        strength: float,
        tol: float,
        max_iter: int,
        *,
        exact: bool = True,
    ) -> tuple[Tensor, int, bool]:
        """Parameters (R + 1, C) of least objective, the passes it took, and whether it is."""
        penalty = self.penalty(strength)
        starts = [w for _, w in path[-1:]] or [penalty.new_zeros(self.shape)]
        if len(path) == 2:
            (c0, w0), (c1, w1) = path
            starts.append(w1 + math.log(strength / c1) / math.log(c1 / c0) * (w1 - w0))
        now = [(*self.value(w, penalty, exact=exact), w) for w in starts]
        loss, gradient, probabilities, w = min(now, key=lambda one: one[0])
        passes = len(starts)
        while passes < max_iter:
            diagonal = (self.diagonal(probabilities) + penalty.float()).clamp_min(1e-30)
            size = math.sqrt(float((gradient.square() / diagonal).sum()) / loss)
            if size <= tol:
                return w, passes, True
            # No more exact than the quadratic convergence, the tolerance or the precision merit.
            accuracy = max(min(0.25, size), 0.3 * tol / size, 1e-2)
            step, took = self.step(
                gradient, diagonal, penalty, probabilities, accuracy, max_iter - passes
            )
            passes += took
            slope, scale = float((gradient * step).sum()), 1.0
            for _ in range(MAX_HALVINGS):
                tried = w + scale * step
                result = self.value(tried, penalty, exact=exact)
                passes += 1
                if result[0] <= loss + 1e-4 * scale * slope:
                    break
                scale /= 2
            else:
                break
            w, (loss, gradient, probabilities) = tried, result
        return w, passes, False

    def step(
        self,
        gradient: Tensor,
        diagonal: Tensor,
        penalty: Tensor,
        probabilities: list[Tensor],
        accuracy: float,
        max_iter: int,
    ) -> tuple[Tensor, int]:
        """Newton's step by preconditioned conjugate gradients, and the passes it took."""
        residual, thin = -gradient.float(), penalty.float()
        blocks = self.preconditioner(diagonal, probabilities)
        step, scaled = torch.zeros_like(residual), blocks.solve(residual)
        direction = scaled
        size = float((residual * scaled).sum())
        goal = accuracy**2 * size
        took = 0
        while size > goal and took < max_iter:
            took += 1
            curved = self.curvature(direction, probabilities) + thin * direction
            bend = float((direction * curved).sum())
            if bend <= 0:  # separated without a penalty: flat in single precision
                break
            length = size / bend
            step.add_(direction, alpha=length)
            residual.sub_(curved, alpha=length)
            scaled = blocks.solve(residual)
            before, size = size, float((residual * scaled).sum())
            direction = scaled + size / before * direction
        return step.double(), took


class _BinaryProblems(_Problem):
    """Mean binary cross-entropy of the samples, summed over the classes, which share no parameter.

    Labels are (N, C) bool. The diagonal of the Hessian is the same function of the probabilities.
    """

    def value(
        self, w: Tensor, penalty: Tensor, *, exact: bool = True
    ) -> tuple[float, Tensor, list[Tensor]]:
        loss, gradient, probabilities = 0.0, penalty * w, []
        for columns, sets, logits in self.logits(w, exact):
            truth = sets.to(logits)
            each = softplus(logits) - truth * logits
            loss += float(each.sum(dtype=torch.float64)) / self.n
            p = torch.sigmoid(logits)
            probabilities.append(p.float())
            gradient += columns @ (p - truth) / self.n
        return loss + float((penalty * w * w).sum()) / 2, gradient, probabilities

    def curvature(self, direction: Tensor, probabilities: list[Tensor]) -> Tensor:
        result = torch.zeros_like(direction)
        for (_, _, rows, columns, _, _), p in zip(self.blocks, probabilities, strict=True):
            result += columns @ (rows @ direction).mul_(p * (1 - p))
        return result / self.n
