"""Random numbers for a batch of pictures, all from one generator."""

import torch
from torch import Generator, Tensor


def uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    """(n,) numbers drawn evenly between `low` and `high`."""
    return low + (high - low) * torch.rand(n, generator=generator)


def chance(n: int, probability: float, generator: Generator) -> Tensor:
    """(n,) bool, each true with the given probability."""
    return torch.rand(n, generator=generator) < probability
