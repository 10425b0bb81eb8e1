from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_sylvester
from torch import Tensor, nn

from cache.errors import UserError
from fewshot.endtoend.parts.lora_pro import LoRAPro, LoRAProSteps

# m, n, r, s
SIZES = [(40, 30, 4, 2.0), (24, 32, 6, 0.5), (20, 20, 1, 1.0)]
TINY = 1e-30  # damping that is none


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def problem(m: int, n: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and the gradient of the matrix."""
    return normal(0, r, n), normal(1, m, r), normal(2, m, n)


def at(A: Tensor, B: Tensor, s: float, damping: float = TINY) -> LoRAProSteps:
    return LoRAProSteps(A[None], B[None], torch.tensor([s], dtype=torch.float64), damping)


def steps(
    A: Tensor, B: Tensor, g: Tensor, s: float, choice: Any, damping: float = TINY
) -> tuple[Tensor, Tensor]:
    uA, uB = at(A, B, s, damping).steps((s * B.T @ g)[None], (s * g @ A.T)[None], choice)
    return uA[0], uB[0]


@pytest.mark.parametrize(("m", "n", "r", "s"), SIZES)
@pytest.mark.parametrize("choice", ["sylvester", "symmetry", "zero"])
def test_the_closed_form_is_the_least_squares_solution(
    m: int, n: int, r: int, s: float, choice: str
) -> None:
    A, B, g = problem(m, n, r)
    uA, uB = steps(A, B, g, s, choice)
    # vec of s (B uA + uB A), rows first, as a matrix times (vec uA, vec uB)
    blocks = [np.kron(B.numpy(), np.eye(n)), np.kron(np.eye(m), A.T.numpy())]
    design = s * torch.from_numpy(np.concatenate(blocks, axis=1))
    best = torch.linalg.lstsq(design, g.flatten()[:, None], driver="gelsd").solution[:, 0]
    moved = s * (B @ uA + uB @ A)
    torch.testing.assert_close(moved.flatten(), design @ best, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved, at(A, B, s).moved(uA[None], uB[None])[0])
    assert (moved - g).norm() < (s**2 * (B @ B.T @ g + g @ A.T @ A) - g).norm()


@pytest.mark.parametrize(("m", "n", "r", "s"), SIZES)
def test_the_matrix_moves_the_same_for_every_x(m: int, n: int, r: int, s: float) -> None:
    A, B, g = problem(m, n, r)
    uA, uB = steps(A, B, g, s, "zero")
    X = normal(3, r, r)
    moved = s * (B @ uA + uB @ A)
    torch.testing.assert_close(s * (B @ (uA + X @ A) + (uB - B @ X) @ A), moved)
    for choice in ("sylvester", "symmetry"):
        uA, uB = steps(A, B, g, s, choice)
        torch.testing.assert_close(s * (B @ uA + uB @ A), moved, rtol=1e-10, atol=1e-11)
    onto_B = B @ torch.linalg.pinv(B)
    onto_A = torch.linalg.pinv(A) @ A
    torch.testing.assert_close(moved, onto_B @ g + g @ onto_A - onto_B @ g @ onto_A)
    assert torch.linalg.matrix_rank(moved, rtol=1e-9) == 2 * r


@pytest.mark.parametrize(("m", "n", "r", "s"), SIZES)
@pytest.mark.parametrize("choice", ["sylvester", "symmetry", "zero"])
def test_the_loss_falls_by_the_square_of_the_equivalent_gradient(
    m: int, n: int, r: int, s: float, choice: str
) -> None:
    A, B, g = problem(m, n, r)
    uA, uB = steps(A, B, g, s, choice)
    change = -((s * B.T @ g) * uA).sum() - ((s * g @ A.T) * uB).sum()
    torch.testing.assert_close(change, -(s * (B @ uA + uB @ A)).square().sum())
    lr = 1e-6
    after = s * ((B - lr * uB) @ (A - lr * uA) - B @ A)  # the loss <g, W> is linear in W
    torch.testing.assert_close((after * g).sum(), lr * change, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("m", "n", "r", "s"), SIZES)
def test_sylvester_is_scipys_solution_and_the_nearest_to_the_plain_gradients(
    m: int, n: int, r: int, s: float
) -> None:
    A, B, g = problem(m, n, r)
    gA, gB = s * B.T @ g, s * g @ A.T
    uA, uB = steps(A, B, g, s, "zero")
    right = -(uA @ A.T)
    X = torch.from_numpy(solve_sylvester((B.T @ B).numpy(), (A @ A.T).numpy(), right.numpy()))
    got = steps(A, B, g, s, "sylvester")
    torch.testing.assert_close(got[0], uA + X @ A, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(got[1], uB - B @ X, rtol=1e-9, atol=1e-11)

    def distance(X: Tensor) -> Tensor:
        return (uA + X @ A - gA).square().sum() + (uB - B @ X - gB).square().sum()

    # The terms gA and gB themselves add B^T g A^T - B^T g A^T = 0 to the gradient over X.
    X.requires_grad_()
    (slope,) = torch.autograd.grad(distance(X), X)
    assert slope.norm() < 1e-9 * (right.norm() + 1)


def test_symmetry_shares_the_overlap_out_evenly() -> None:
    A, B, g = problem(40, 30, 4)
    uA, uB = steps(A, B, g, 2.0, "symmetry")
    onto_A, onto_B = torch.linalg.pinv(A) @ A, B @ torch.linalg.pinv(B)
    expected_A = torch.linalg.pinv(B) @ g @ (torch.eye(30).double() - onto_A / 2) / 2
    expected_B = (torch.eye(40).double() - onto_B / 2) @ g @ torch.linalg.pinv(A) / 2
    torch.testing.assert_close(uA, expected_A)
    torch.testing.assert_close(uB, expected_B)


@pytest.mark.parametrize("choice", ["sylvester", "symmetry", "zero"])
def test_at_zero_b_alone_moves(choice: str) -> None:
    A, _, g = problem(40, 30, 4)
    B = torch.zeros(40, 4).double()
    uA, uB = steps(A, B, g, 2.0, choice, damping=1e-8)
    assert not uA.any()
    torch.testing.assert_close(uB, g @ torch.linalg.pinv(A) / 2, rtol=1e-7, atol=1e-9)


def test_pairs_of_one_shape_are_independent() -> None:
    A, B, g = normal(0, 5, 3, 12), normal(1, 5, 9, 3), normal(2, 5, 9, 12)
    scale = torch.tensor([0.5, 1, 2, 4, 0.1], dtype=torch.float64)
    together = LoRAProSteps(A, B, scale, 1e-8).of_full(g, "sylvester")
    for i in range(5):
        alone = steps(A[i], B[i], g[i], float(scale[i]), "sylvester", 1e-8)
        torch.testing.assert_close(together[0][i], alone[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together[1][i], alone[1], rtol=1e-9, atol=1e-11)


def adamw(
    A: Tensor, B: Tensor, gradients: list[Tensor], s: float, lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """The algorithm of the paper, one pair and one step at a time, with explicit inverses."""
    m, v = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    damping = 1e-8 * torch.eye(len(A)).double()
    for t, g in enumerate(gradients, start=1):
        A, B = A * (1 - lr * decay) ** 0.5, B * (1 - lr * decay) ** 0.5
        P, Q = (B.T @ B + damping).inverse(), (A @ A.T + damping).inverse()

        def closed(
            full: Tensor, A: Tensor = A, B: Tensor = B, P: Tensor = P, Q: Tensor = Q
        ) -> tuple[Tensor, Tensor]:
            gA, gB = s * B.T @ full, s * full @ A.T
            return P @ gA / s**2, (gB - B @ P @ B.T @ gB) @ Q / s**2

        a, b = closed(g)
        equivalent = s * (B @ a + b @ A)
        m, v = 0.9 * m + 0.1 * equivalent, 0.999 * v + 0.001 * equivalent**2
        uA, uB = closed((m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        X = torch.from_numpy(
            solve_sylvester(
                (B.T @ B + damping / 2).numpy(),
                (A @ A.T + damping / 2).numpy(),
                -(uA @ A.T).numpy(),
            )
        )
        A, B = A - lr * (uA + X @ A), B - lr * (uB - B @ X)
    return A, B


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("zero", [True, False])
def test_full_mode_is_the_papers_adamw(decay: float, zero: bool) -> None:
    sizes = [(12, 10, 3, 2.0), (8, 8, 2, 0.7), (12, 10, 3, 0.5)]
    pairs, expected, targets = [], [], []
    for i, (m, n, r, s) in enumerate(sizes):
        A, B = normal(i, r, n), normal(10 + i, m, r) * (not zero)
        gradients = [normal(100 * i + t, m, n) for t in range(4)]
        expected.append(adamw(A, B, gradients, s, 0.01, decay))
        pairs.append((nn.Parameter(A.clone()), nn.Parameter(B.clone()), s))
        targets.append(gradients)
    optimizer = LoRAPro(pairs, lr=0.01, weight_decay=decay)
    assert len(optimizer.param_groups) == 2
    for t in range(4):
        for (A, B, s), gradients in zip(pairs, targets, strict=True):
            loss = (gradients[t] * (s * B @ A)).sum()
            A.grad, B.grad = torch.autograd.grad(loss, [A, B])
        optimizer.step()
    for (A, B, _), (A_, B_) in zip(pairs, expected, strict=True):
        torch.testing.assert_close(A.detach(), A_, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(B.detach(), B_, rtol=1e-6, atol=1e-8)


def test_weight_decay_shrinks_the_update_as_adamw_shrinks_a_weight() -> None:
    A, B, _ = problem(8, 6, 2)
    pair = nn.Parameter(A.clone()), nn.Parameter(B.clone()), 1.0
    pair[0].grad, pair[1].grad = torch.zeros_like(A), torch.zeros_like(B)
    LoRAPro([pair], lr=0.1, weight_decay=0.3).step()
    torch.testing.assert_close(pair[1].detach() @ pair[0].detach(), (1 - 0.1 * 0.3) * B @ A)


class Regression(nn.Module):
    """Two matrices of different shapes with updates, to be moved to a far one of full rank."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = [(16, 24), (16, 24), (24, 12)]
        self.A = nn.ParameterList([torch.randn(4, n, generator=generator) / 5 for _, n in shapes])
        self.B = nn.ParameterList([torch.zeros(m, 4) for m, _ in shapes])
        self.targets = [torch.randn(shape, generator=generator) for shape in shapes]

    def loss(self) -> Tensor:
        triples = zip(self.A, self.B, self.targets, strict=True)
        return torch.stack(
            [(0.5 * B @ A - target).square().sum() for A, B, target in triples]
        ).sum()

    def pairs(self) -> list[tuple[Any, Any, float]]:
        return [(A, B, 0.5) for A, B in zip(self.A, self.B, strict=True)]


def train(model: Regression, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("choice", ["sylvester", "symmetry", "zero"])
def test_gradient_descent_reaches_the_best_update_of_that_rank(choice: Any) -> None:
    model = Regression()
    losses = train(model, LoRAPro(model.pairs(), lr=0.3, mode="sgd", choice=choice), 100)
    best = sum(float(torch.linalg.svdvals(t)[4:].square().sum()) for t in model.targets)
    assert all(after <= before + 1e-3 for before, after in pairwise(losses))
    assert best - 1e-3 < losses[-1] < best + 0.02 * (losses[0] - best)


def test_full_mode_falls_faster_than_adamw_on_the_factors() -> None:
    ours, plain = Regression(), Regression()
    fast = train(ours, LoRAPro(ours.pairs(), lr=3e-3), 60)
    slow = train(plain, torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0), 60)
    assert fast[-1] < slow[-1] < fast[0]
    assert fast[0] - fast[-1] > 2 * (slow[0] - slow[-1])


def test_efficient_mode_descends() -> None:
    model = Regression()
    losses = train(model, LoRAPro(model.pairs(), lr=1e-2, mode="efficient"), 100)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("mode", ["full", "sgd", "efficient"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(mode: Any) -> None:
    model = Regression()
    optimizer = LoRAPro(model.pairs(), lr=1e-2, mode=mode, weight_decay=0.1)
    train(model, optimizer, 3)
    resumed = Regression()
    resumed.load_state_dict(model.state_dict())
    other = LoRAPro(resumed.pairs(), lr=5.0, mode=mode)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 1e-2
    assert train(resumed, other, 3) == train(model, optimizer, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_moments_have_the_shape_of_the_matrices() -> None:
    model = Regression()
    optimizer = LoRAPro(model.pairs(), lr=1e-2)
    train(model, optimizer, 1)
    shapes = sorted(tuple(state["mean"].shape) for state in optimizer.state.values())
    assert shapes == [(1, 24, 12), (2, 16, 24)]
    assert {state["square"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_a_step_without_gradients_moves_nothing() -> None:
    model = Regression()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    LoRAPro(model.pairs(), lr=1.0, weight_decay=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_closure_is_called_with_gradients_on() -> None:
    model = Regression()
    optimizer = LoRAPro(model.pairs(), lr=1e-2)

    def closure() -> float:
        loss = model.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert first is not None
    assert second is not None
    assert second < first


def test_steps_from_tiny_factors_are_finite_and_small() -> None:
    for size, choice in product((1e-12, 1e-6, 1e-3), ("sylvester", "symmetry", "zero")):
        A, B, g = problem(40, 30, 4)
        A, B, g = A.float(), (size * B).float(), g.float()
        for u in steps(A, B, g, 1.0, choice, damping=1e-8):
            assert u.dtype == torch.float32
            assert torch.isfinite(u).all()
            assert u.norm() < 1e6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mode": "ful"}, "unknown mode 'ful'; did you mean 'full'"),
        ({"choice": "x"}, "unknown choice of X 'x'"),
        ({"lr": -1.0}, r"lr must be 0 or more; got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or more; got nan"),
        ({"eps": float("inf")}, "eps must be 0 or more; got inf"),
        ({"damping": 0.0}, r"damping must be above 0, as B starts at 0; got 0.0"),
        ({"pairs": []}, "no pair to train"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], match: str) -> None:
    build: Callable[..., LoRAPro] = LoRAPro
    with pytest.raises(UserError, match=match):
        build(**({"pairs": Regression().pairs(), "lr": 1e-3} | changes))
