"""Dropout whose masks cost a CPU little: one random byte a number, eight of them drawn at once.

torch draws a float for each number on one core, 7 to 13 ns of them; of a CLIP-LoRA's step that is
6 %. A byte decides just as well where the share is a whole number of 256ths, such as CLIP-LoRA's
0.25. Any other share, and a GPU, is torch's own. Shares are the same, the numbers drawn are others.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """`nn.Dropout`, with cheaper masks on a CPU; they are of torch's global generator too."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, of which a share is zero in training, and the others larger for that."""
        below = 256 * self.p
        if not self.training or input.device.type != "cpu" or below % 1 or below in (0, 256):
            return super().forward(input)
        drawn = torch.empty(math.ceil(input.numel() / 8), dtype=torch.int64)
        drawn.random_(-(2**63), None)
        numbers = drawn.view(torch.int8)[: input.numel()].view(input.shape)
        dropped: Tensor = _Dropped.apply(input, numbers, self.p)
        return dropped


class _Dropped(torch.autograd.Function):
    """Keeps one byte a number for the gradient, as torch's dropout does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.p = p
        return x * _mask(numbers, p, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (numbers,) = ctx.saved_tensors
        return gradient * _mask(numbers, ctx.p, gradient.dtype), None, None


def _mask(numbers: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """0 for the share p of all numbers from -128 to 127, else 1 / (1 - p)."""
    return numbers.to(dtype).ge_(256 * p - 128).mul_(1 / (1 - p))
