import math

import pytest
import torch
from torch import nn

from fewshot.endtoend.parts.dropout import ByteDropout

N = 100_003


@pytest.mark.parametrize("p", [0.25, 0.5, 3 / 256, 1 - 1 / 256, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_is_zero_and_the_rest_is_larger(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.ones(N, dtype=dtype, requires_grad=True)
    y = ByteDropout(p)(x)
    kept = y != 0
    assert abs(float(kept.double().mean()) - (1 - p)) < 4 * math.sqrt(p * (1 - p) / N)
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    [gradient] = torch.autograd.grad(y, x, torch.full_like(y, 2))
    assert torch.equal(gradient, 2 * y)


def test_neighbors_are_dropped_independently_of_each_other() -> None:
    torch.manual_seed(3)
    dropped = (ByteDropout(0.5)(torch.ones(N)) == 0).double() - 0.5
    for apart in (1, 2, 4, 7, 8, 16):
        together = 4 * float((dropped[apart:] * dropped[:-apart]).mean())
        assert abs(together) < 4 / math.sqrt(N)


def test_the_global_generator_says_what_is_dropped() -> None:
    drop, x = ByteDropout(0.25), torch.ones(5, 7)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


def test_a_share_of_no_256ths_is_torchs_own() -> None:
    x = torch.ones(50)
    torch.manual_seed(3)
    ours = ByteDropout(0.1)(x)
    torch.manual_seed(3)
    assert torch.equal(ours, nn.Dropout(0.1)(x))


def test_nothing_is_dropped_but_in_training() -> None:
    x = torch.ones(50)
    assert ByteDropout(0.25).eval()(x) is x
