import pytest
import torch
from torch import Tensor

from fewshot.endtoend.parts.equilibrium import (
    BOUND,
    Equilibrium,
    ImplicitLayer,
    fixed_point,
    norm_bound,
)


def layer(dim: int = 4, *, times: float = 1.0, seed: int = 0) -> ImplicitLayer:
    """In double precision, with a last layer that is not zero, and a larger state."""
    generator = torch.Generator().manual_seed(seed)
    made = ImplicitLayer(6, dim, generator).double()
    with torch.no_grad():
        made.state.mul_(times)
        made.out.weight.normal_(generator=generator)
    return made


def inputs(n: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)).double()


def state(made: ImplicitLayer, x: Tensor) -> Tensor:
    z: Tensor = Equilibrium.apply(made.weight(), made.inject(x))
    return z


def norm(matrix: Tensor) -> Tensor:
    largest: Tensor = torch.linalg.matrix_norm(matrix.detach(), ord=2)
    return largest


@torch.no_grad()
def residual(made: ImplicitLayer, x: Tensor) -> float:
    z = state(made, x)
    return float((z - (z @ made.weight().T + made.inject(x)).tanh()).abs().max())


@pytest.mark.parametrize("dim", [1, 32])
@pytest.mark.parametrize("times", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("of_input", [0.0, 1e-3, 1.0, 1e3])  # tanh is steepest near zero
def test_the_state_stands_still_whatever_the_weights(
    dim: int, times: float, of_input: float
) -> None:
    made = layer(dim, times=times)
    assert float(norm(made.weight())) <= BOUND + 1e-12
    assert residual(made, of_input * inputs()) < 1e-13
    x = (of_input * inputs()).float()
    assert residual(made.float(), x) < 1e-5


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_the_norm_s_bound_is_above_it_by_next_to_nothing(dim: int) -> None:
    for times in (1e-6, 1.0, 1e6):
        matrix = times * torch.randn(dim, dim, generator=torch.Generator().manual_seed(2)).double()
        bound, exact = norm_bound(matrix), norm(matrix)
        assert (1 - 1e-12) * exact <= bound <= dim ** (1 / 1024) * (1 + 1e-12) * exact
    identity = torch.eye(dim, dtype=torch.float64, requires_grad=True)  # all of them equal
    norm_bound(identity).backward()  # type: ignore[no-untyped-call]
    assert identity.grad is not None
    assert identity.grad.isfinite().all()
    assert norm_bound(torch.zeros(dim, dim)) < 1e-3


def test_it_still_stands_still_when_training_pushes_the_weights_up() -> None:
    made, x = layer(times=0.5), inputs(20)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        (-made(x).square().sum()).backward()
        optimizer.step()
    assert float(norm(made.state)) > 2 * BOUND
    assert residual(made, x) < 1e-13


def test_the_slowest_weights_there_are_arrive_too() -> None:
    """An identity times the bound on inputs near zero, where tanh shrinks nothing."""
    steps = 0

    def step(z: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return (BOUND * z + 1e-6).tanh()

    z = fixed_point(step, torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(z, (BOUND * z + 1e-6).tanh(), rtol=1e-14, atol=0.0)
    assert 250 < steps < 400


def test_a_state_that_is_no_number_ends_at_once() -> None:
    steps = 0

    def step(z: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return z * float("nan")

    assert fixed_point(step, torch.ones(1, 1)).isnan().all()
    assert steps == 1


def gradients(made: ImplicitLayer, z: Tensor, pull: Tensor) -> list[Tensor]:
    weights = [made.state, made.inject.weight, made.inject.bias]
    return list(torch.autograd.grad((z * pull).sum(), weights))


@pytest.mark.parametrize("times", [0.5, 10.0])  # below the bound and above
def test_the_gradient_is_that_of_a_long_unrolled_iteration(times: float) -> None:
    made, x, pull = layer(times=times), inputs(), torch.randn(5, 4).double()
    z = torch.zeros(5, 4).double()
    for _ in range(400):
        z = (z @ made.weight().T + made.inject(x)).tanh()
    ours = gradients(made, state(made, x), pull)
    torch.testing.assert_close(ours, gradients(made, z, pull), rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_a_dense_solve_with_the_jacobian() -> None:
    made, x, pull = layer(times=10.0), inputs(), torch.randn(5, 4).double()
    weight, u = made.weight().detach(), made.inject(x).detach()
    z = state(made, x).detach()
    of_weight, of_u = torch.zeros(4, 4).double(), []
    for row, a, g in zip(z, u, pull, strict=True):
        jacobian = torch.func.jacrev(lambda s, a=a: (weight @ s + a).tanh())(row)  # (4, 4)
        slope = 1 - (weight @ row + a).tanh().square()
        v = slope * torch.linalg.solve((torch.eye(4).double() - jacobian).T, g)
        of_u.append(v)
        of_weight += v[:, None] * row
    weight.requires_grad_()
    u.requires_grad_()
    ours = torch.autograd.grad((Equilibrium.apply(weight, u) * pull).sum(), [weight, u])
    torch.testing.assert_close(ours, (of_weight, torch.stack(of_u)), rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_whole_layer_is_that_of_finite_differences() -> None:
    made = layer(2, times=10.0)
    x = inputs(1).requires_grad_()
    values = tuple(p.detach().clone().requires_grad_() for p in made.parameters())
    names = [name for name, _ in made.named_parameters()]

    def of(x: Tensor, *given: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(made, dict(zip(names, given, strict=True)), (x,))
        return out

    assert torch.autograd.gradcheck(of, (x, *values))


def test_nothing_of_the_iterations_is_kept_for_the_gradient() -> None:
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    made, x = layer(times=10.0), inputs(50)
    weight, u = made.weight().detach().requires_grad_(), made.inject(x).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Equilibrium.apply(weight, u)
    assert sum(kept) == 4 * 4 + 50 * 4


def test_an_exported_graph_computes_the_same_without_looking_at_numbers() -> None:
    made, x = layer(times=10.0).float(), inputs(3).float()
    with torch.no_grad():
        program = torch.export.export(made, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), made(x), rtol=1e-5, atol=1e-5)
    code = program.graph_module.print_readable(print_output=False)
    assert code.count("aten.tanh") == 130
    assert "linalg" not in code  # ONNX has no singular values


def test_a_layer_adds_zero_at_first_and_in_float32_under_autocast() -> None:
    made = ImplicitLayer(6, 4, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = made(inputs().bfloat16())
    assert out.dtype == torch.float32
    assert not out.any()
    assert bool(made.inject.bias.any())
