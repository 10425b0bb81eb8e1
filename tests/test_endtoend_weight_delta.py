from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cache.errors import UserError
from fewshot.endtoend.methods.clip_lora import LoRALinear
from fewshot.endtoend.methods.difffit import Gain
from fewshot.endtoend.methods.fact import FacTLinear
from fewshot.endtoend.methods.full_delta import FullDeltaLinear
from fewshot.endtoend.methods.kadaptation import KAdaptationLinear
from fewshot.endtoend.methods.krona import KronALinear
from fewshot.endtoend.methods.repadapter import AdaptedNorm
from fewshot.endtoend.methods.ssf import ScaleShift
from fewshot.endtoend.parts.weight_delta import WeightDelta, fold

IN, OUT = 12, 24


def plain(n_in: int = IN, n_out: int = OUT) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(7)))
    return layer.requires_grad_(False)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(delta: nn.Module) -> Any:
    """With all that is trained off its start."""
    with torch.no_grad():
        for i, parameter in enumerate(delta.parameters()):
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(i)))
    return delta


def krona() -> KronALinear:
    return KronALinear(plain(), 4, 2.0, generator=seeded(1))


def kadaptation() -> KAdaptationLinear:
    like = torch.zeros(())
    shared = KAdaptationLinear.shared_factors(like, 3, 4, seeded(2))
    return KAdaptationLinear(plain(), shared, 5.0, dropout=0.5, generator=seeded(1))


def lora() -> LoRALinear:
    return LoRALinear(plain(), 4, 1.5, dropout=0.5, generator=seeded(1))


def fact(*, tucker: bool) -> FacTLinear:
    """The second of two matrices, whose greatest common width is 6: 4 x 2 blocks."""
    layers = [plain(18, 6), plain()]
    shared = FacTLinear.shared_factors(layers, 2, seeded(2), tucker=tucker)
    return FacTLinear(
        layers[1], shared, 3.0, dropout=0.5, generator=seeded(1), first_slot=3 if tucker else None
    )


def krona_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    update = torch.zeros(OUT, IN)
    for i in range(4):
        for j in range(4):
            update[i * 6 : (i + 1) * 6, j * 3 : (j + 1) * 3] = parts["A"][i, j] * parts["B"]
    return delta.plain.weight + 2.0 * update, delta.plain.bias


def kadaptation_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    update = torch.zeros(OUT, IN)
    for i in range(3):
        first = torch.outer(parts["shared.P"][i], parts["shared.Q"][i])
        update = update + torch.kron(first, torch.outer(parts["U"][i], parts["V"][i]))
    return delta.plain.weight + 5.0 * update, delta.plain.bias + parts["b"]


def lora_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    update = torch.zeros(OUT, IN)
    for i in range(4):
        update = update + 1.5 * torch.outer(parts["B"][:, i], parts["A"][i])
    return delta.plain.weight + update, delta.plain.bias


def fact_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    update = torch.zeros(OUT, IN)
    for m in range(4):
        for n in range(2):
            if "S" in parts:
                core = parts["S"][2 * m : 2 * m + 2, 2 * n : 2 * n + 2]
            else:
                column = parts["shared.P"][:, 3 + 2 * m + n]
                core = sum((column[k] * parts["shared.C"][k] for k in range(2)), torch.zeros(2, 2))
            block = parts["shared.V"] @ core @ parts["shared.U"]
            update[6 * m : 6 * m + 6, 6 * n : 6 * n + 6] = 3.0 * block
    return delta.plain.weight + update, delta.plain.bias


def full_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return delta.plain.weight + parts["D"], delta.plain.bias


def ssf_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    gamma = parts["gamma"]
    return torch.diag(gamma) @ delta.plain.weight, gamma * delta.plain.bias + parts["beta"]


def gain_dense(delta: Any, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return parts["gamma"] * delta.plain.weight, parts["gamma"] * delta.plain.bias


Build = Callable[[], WeightDelta]
Dense = Callable[[Any, dict[str, Tensor]], tuple[Tensor, Tensor]]
ALL: list[tuple[Build, Dense]] = [
    (lambda: FullDeltaLinear(plain()), full_dense),
    (krona, krona_dense),
    (lora, lora_dense),
    (kadaptation, kadaptation_dense),
    (lambda: fact(tucker=False), fact_dense),
    (lambda: fact(tucker=True), fact_dense),
    (lambda: ScaleShift(plain(), 0.0, generator=seeded(1)), ssf_dense),
    (lambda: Gain(plain()), gain_dense),
]
NAMES = ["full", "krona", "lora", "kadaptation", "fact-tt", "fact-tk", "ssf", "gain"]


@pytest.mark.parametrize(("build", "dense"), ALL, ids=NAMES)
def test_output_and_gradients_are_those_of_the_updated_matrix_written_out(
    build: Build, dense: Dense
) -> None:
    delta = moved(build()).eval()
    x = torch.randn(5, 3, IN, generator=seeded(3)).requires_grad_()
    weights = torch.randn(5, 3, OUT, generator=seeded(4))
    tuned = {name: p for name, p in delta.named_parameters() if p.requires_grad}
    theirs = {name: p.detach().clone().requires_grad_() for name, p in tuned.items()}
    there = x.detach().clone().requires_grad_()
    y, expected = delta(x), linear(there, *dense(delta, theirs))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    (weights * y).sum().backward()
    (weights * expected).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, there.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in tuned.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in delta.plain.parameters())


@pytest.mark.parametrize(("build", "dense"), ALL, ids=NAMES)
def test_at_first_and_after_folding_it_is_a_plain_matrix(build: Build, dense: Dense) -> None:
    x = torch.randn(5, IN, generator=seeded(3))
    start = build()
    torch.testing.assert_close(start.eval()(x), plain()(x), rtol=0, atol=0)
    model = nn.Sequential(moved(build()).eval())
    with torch.no_grad():
        before = model(x)
        assert not torch.allclose(before, plain()(x))
        fold(model)
        assert type(model[0]) is nn.Linear
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [krona, lambda: FullDeltaLinear(plain())], ids=["krona", "full"])
def test_a_matrix_without_bias_stays_without(build: Build) -> None:
    delta = moved(build())
    delta.plain.bias = None
    assert delta.folded()[1] is None
    x = torch.randn(2, IN, generator=seeded(3))
    torch.testing.assert_close(delta(x), x @ delta.folded()[0].T, rtol=1e-5, atol=1e-5)


def test_a_matrix_without_bias_gets_one_where_the_update_has_one() -> None:
    x = torch.randn(2, IN, generator=seeded(3))
    for delta in (ScaleShift(plain(), 0.5, generator=seeded(1)), moved(kadaptation()).eval()):
        delta.plain.bias = None
        weight, bias = delta.folded()
        assert bias is not None
        torch.testing.assert_close(delta(x), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_lora_starts_as_its_paper_says_and_draws_from_its_generator_alone() -> None:
    before = torch.get_rng_state()
    big = nn.Linear(900, 8, device="meta").to_empty(device="cpu")
    delta = LoRALinear(big, 64, 1.0, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not delta.B.any()
    bound = 900**-0.5
    assert 0.999 * bound < float(delta.A.detach().abs().max()) <= bound
    assert float(delta.A.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(delta.A, LoRALinear(big, 64, 1.0, generator=seeded(1)).A)
    assert not torch.equal(delta.A, LoRALinear(big, 64, 1.0, generator=seeded(2)).A)


def test_lora_drops_inputs_of_a_alone() -> None:
    delta = moved(LoRALinear(plain(), 2, 3.0, dropout=0.25, generator=seeded(1)))
    x = torch.randn(IN, generator=seeded(3))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        drawn = delta.train()(x)
        torch.manual_seed(5)
        mask = nn.functional.dropout(torch.ones(IN), 0.25)
        assert 0 < int((mask == 0).sum()) < IN
        torch.testing.assert_close(drawn, delta.plain(x) + 3.0 * delta.B @ delta.A @ (x * mask))


@pytest.mark.parametrize("build", [kadaptation, lora, lambda: fact(tucker=False)])
def test_dropout_acts_in_training_alone(build: Build) -> None:
    delta = moved(build())
    x = torch.randn(5, IN, generator=seeded(3))
    with torch.no_grad():
        assert not torch.equal(delta.train()(x), delta(x))
        assert torch.equal(delta.eval()(x), delta(x))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LayerNorm(6), (2, 3, 6)),
        (nn.Conv2d(6, 8, 3, bias=False), (2, 6, 5, 5)),
        (nn.BatchNorm2d(6), (2, 6, 5, 5)),
    ],
)
def test_ssf_scales_and_shifts_the_channels_of_norms_and_convolutions(
    module: Any, shape: tuple[int, ...]
) -> None:
    module.eval()
    x = torch.randn(shape, generator=seeded(3))
    delta = ScaleShift(module, 0.5, generator=seeded(1))
    with torch.no_grad():
        y = delta(x)
        expected = module(x).movedim(1 if x.ndim == 4 else -1, 0).clone()
        for c, (gamma, beta) in enumerate(zip(delta.gamma, delta.beta, strict=True)):
            expected[c] = gamma * expected[c] + beta
        torch.testing.assert_close(y.movedim(1 if x.ndim == 4 else -1, 0), expected)
        delta.fold()
        torch.testing.assert_close(module(x), y, rtol=1e-5, atol=1e-5)


def test_ssf_can_start_with_the_authors_noise() -> None:
    big = plain(2, 4000)
    delta = ScaleShift(big, 0.02, generator=seeded(1)).requires_grad_(False)
    assert float((delta.gamma - 1).std()) == pytest.approx(0.02, rel=0.1)
    assert float(delta.beta.std()) == pytest.approx(0.02, rel=0.1)
    assert float(delta.gamma.mean()) == pytest.approx(1, abs=0.002)


def repadapter(dropout: float = 0.0) -> tuple[AdaptedNorm, list[nn.Linear]]:
    followers = [plain(IN, 5), plain(IN, 7)]
    followers[1].register_parameter("bias", None)
    norm = nn.LayerNorm(IN).requires_grad_(False)
    delta = AdaptedNorm(norm, followers, 4, 2, 3.0, dropout=dropout, generator=seeded(1))
    return delta, followers


def test_repadapter_is_a_factor_of_the_matrices_after_the_norm() -> None:
    delta, followers = repadapter()
    x = torch.randn(5, 2, IN, generator=seeded(3))
    torch.testing.assert_close(delta(x), delta.plain(x), rtol=0, atol=0)
    moved(delta)
    tuned = {n: p for n, p in delta.named_parameters() if p.requires_grad}
    assert set(tuned) == {"A", "a", "B", "b"}
    theirs = {n: p.detach().clone().requires_grad_() for n, p in tuned.items()}
    up = torch.zeros(IN, 4)  # each half of the channels from its own half of the hidden units
    up[:6, :2], up[6:, 2:] = theirs["B"][0], theirs["B"][1]
    matrix = torch.eye(IN) + 3.0 * up @ theirs["A"]
    shift = 3.0 * (up @ theirs["a"] + theirs["b"])
    norm = delta.plain(x)
    expected = [f(norm @ matrix.T + shift) for f in followers]
    y = [f(delta(x)) for f in followers]
    for here, there in zip(y, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-4)
    (y[0].sin().sum() + y[1].cos().sum()).backward()
    (expected[0].sin().sum() + expected[1].cos().sum()).backward()
    for name, parameter in tuned.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-3)
    model = nn.Sequential(delta)
    fold(model)
    assert type(model[0]) is nn.LayerNorm
    for f, there in zip(followers, expected, strict=True):
        torch.testing.assert_close(f(model(x)), there, rtol=1e-5, atol=1e-4)


def test_the_matrices_after_the_norm_do_not_count_as_the_adapters() -> None:
    delta, _ = repadapter()
    assert {name for name, _ in delta.named_parameters()} == {
        "plain.weight", "plain.bias", "A", "a", "B", "b",
    }  # fmt: skip


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="factor must divide a matrix's 24 and 12 features; got 5"):
        KronALinear(plain(), 5, 1.0, generator=seeded(1))
    with pytest.raises(UserError, match="groups must divide dim and the tower's width; got 3"):
        AdaptedNorm(nn.LayerNorm(IN), [], 4, 3, 1.0, dropout=0.0, generator=seeded(1))
