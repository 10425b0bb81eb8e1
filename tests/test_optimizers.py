from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewshot.parts.optimizers import SGD, Adam
from tests.toys import vectors

RATES = (0.1, 0.3, 0.05, 0.2)
SHAPES = ((3, 4), (5,), (2, 1, 3))


def starts() -> list[Tensor]:
    return [vectors(i, *shape) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (lambda p: SGD(*p, momentum=0.9), lambda p: torch.optim.SGD(p, momentum=0.9)),
        (
            lambda p: SGD(*p, momentum=0.5, weight_decay=0.3),
            lambda p: torch.optim.SGD(p, momentum=0.5, weight_decay=0.3),
        ),
        (
            lambda p: Adam(*p, weight_decay=0.3, decoupled=False),
            lambda p: torch.optim.Adam(p, weight_decay=0.3),
        ),
        (
            lambda p: Adam(*p, weight_decay=0.3, decoupled=True, eps=1e-2),
            lambda p: torch.optim.AdamW(p, weight_decay=0.3, eps=1e-2),
        ),
    ],
    ids=["sgd", "sgd with decay", "adam", "adamw"],
)
def test_steps_are_those_of_torchs_optimizers(
    ours: Callable[[list[Tensor]], SGD | Adam],
    torchs: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> None:
    trained, expected = ours(starts()), [start.requires_grad_() for start in starts()]
    optimizer = torchs(expected)
    for i, rate in enumerate(RATES):
        for parameter, gradient in zip(expected, trained.gradients, strict=True):
            parameter.grad = vectors(10 + i, *parameter.shape)
            gradient.copy_(parameter.grad)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        trained.step(rate)
    for value, parameter in zip(trained.values, expected, strict=True):
        torch.testing.assert_close(value, parameter.detach())


def test_what_is_trained_starts_as_a_copy_and_is_counted() -> None:
    given = starts()
    trained = SGD(*given, momentum=0.9)
    for value, start, shape in zip(trained.values, given, SHAPES, strict=True):
        assert value.shape == shape
        assert torch.equal(value, start)
    assert trained.count == 3 * 4 + 5 + 6
    trained.gradients[0].fill_(1.0)
    trained.step(0.5)
    assert torch.equal(given[0], starts()[0])
    torch.testing.assert_close(trained.values[0], given[0] - 0.5)
