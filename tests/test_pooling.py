import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewshot.parts import pooling
from fewshot.parts.pooling import pool_weights

B, M, C = 4, 60, 5
PRIOR = torch.tensor([0.5, 0.0, 0.2, 1.0], dtype=torch.float64)
ALL = torch.ones(B, dtype=torch.bool)


def pool(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, M, C) of four classifiers, the last of which is always wrong, and labels (M,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (M,), generator=generator)
    logits = torch.randn(B, M, C, generator=generator)
    logits[:3, torch.arange(M), labels] += 2
    logits[3, torch.arange(M), labels] -= 3
    return logits, labels


def found_in(one: tuple[Tensor, Tensor], free: Tensor, pull: float) -> Tensor:
    return pool_weights([one[0]], [one[1]], PRIOR, free, pull=pull)


def objective(w: Tensor, logits: Tensor, labels: Tensor, pull: float) -> Tensor:
    pooled = torch.einsum("b,bmc->mc", w, logits.double())
    return cross_entropy(pooled, labels, reduction="sum") + pull / 2 * ((w - PRIOR) ** 2).sum()


@pytest.mark.parametrize("pull", [0.1, 3.0, 100.0])
def test_the_weights_are_those_that_a_general_optimizer_finds(pull: float) -> None:
    logits, labels = pool()

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(w).requires_grad_()
        value = objective(point, logits, labels, pull)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy()

    expected = minimize(loss, np.ones(B), jac=True, bounds=[(0, None)] * B, tol=1e-12).x
    found = found_in((logits, labels), ALL, pull)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_what_is_always_wrong_gets_no_weight() -> None:
    found = found_in(pool(), ALL, pull=0.1)
    assert found[3] == 0
    assert (found[:3] > 0).all()


def test_an_endless_pull_keeps_the_prior() -> None:
    found = found_in(pool(), ALL, pull=1e9)
    torch.testing.assert_close(found, PRIOR, rtol=0, atol=1e-6)


def test_a_weight_that_is_not_free_keeps_its_value() -> None:
    free = torch.tensor([True, False, True, False])
    found = found_in(pool(), free, pull=1.0)
    assert found[[1, 3]].tolist() == [0.0, 1.0]
    assert found[0] != PRIOR[0]


def test_parts_and_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = pool()
    expected = found_in((logits, labels), ALL, pull=1.0)
    monkeypatch.setattr(pooling, "BLOCK", 7 * C)
    found = pool_weights(
        torch.split(logits, 25, dim=1), torch.split(labels, 25), PRIOR, ALL, pull=1.0
    )
    torch.testing.assert_close(found, expected)
