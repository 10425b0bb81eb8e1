"""Adapters, LoRA and prompts that can be used at a smaller width than they have.

The first rows of a wide module are the narrow one, so modules of all widths share their weights, as
in a supernet. At width 0 a module does nothing.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fewshot.endtoend.parts.branch import Bottleneck
from fewshot.endtoend.parts.vit import quick_gelu
from fewshot.endtoend.parts.weight_delta import WeightDelta, drawn_weight

Place = tuple[str, int]  # a primitive of a tower, such as "image_lora", and the number of a block


class Elastic:
    """A part of a module that has a width.

    Attributes:
        place: The primitive and the block that it is part of.
        width: How much of it is in use, from 0 to all.
        each: Trained numbers per unit of width.
        once: Trained numbers at any width but 0.
    """

    place: Place
    width: int
    each: int
    once: int = 0

    def trained(self, width: int) -> int:
        """How many numbers are trained at a width."""
        return self.once + width * self.each if width else 0


class ElasticLoRA(WeightDelta, Elastic):
    """W x + B A x, by the first rows of A and columns of B.

    Attributes:
        A: (r, in), drawn as `nn.Linear` draws its weight.
        B: (out, r), zero.
    """

    def __init__(
        self, plain: nn.Linear, place: Place, width: int, generator: torch.Generator
    ) -> None:
        super().__init__(plain)
        self.place, self.width = place, width
        self.each = plain.in_features + plain.out_features
        self.A = nn.Parameter(drawn_weight(width, plain.in_features, generator).to(plain.weight))
        self.B = nn.Parameter(plain.weight.new_zeros(plain.out_features, width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in), through w dimensions."""
        y: Tensor = self.plain(x)
        if not self.width:
            return y
        return y + linear(linear(x, self.A[: self.width]), self.B[:, : self.width])

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + B A."""
        update = self.B[:, : self.width] @ self.A[: self.width]
        return self.weight + update, self.plain.bias


class ElasticBottleneck(Bottleneck, Elastic):
    """A bottleneck through its first hidden units."""

    def __init__(self, tokens: int, place: Place, width: int, generator: torch.Generator) -> None:
        super().__init__(tokens, width, activation=nn.Identity(), generator=generator)
        self.place, self.width = place, width
        self.each, self.once = 2 * tokens + 1, tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of (..., W), or a zero to add."""
        if not self.width:
            return tokens.new_zeros(())
        hidden = linear(tokens, self.down.weight[: self.width], self.down.bias[: self.width])
        return linear(quick_gelu(hidden), self.up.weight[:, : self.width], self.up.bias)


class ElasticTokens(nn.Module, Elastic):
    """The first of l learned tokens (l, W)."""

    def __init__(self, tokens: Tensor, place: Place) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)
        self.place, self.width = place, len(tokens)
        self.each = tokens.shape[1]

    def forward(self) -> Tensor:
        """(w, W)."""
        return self.tokens[: self.width]


def elastic(model: nn.Module) -> Iterator[Elastic]:
    """The elastic modules of a model."""
    for module in model.modules():
        if isinstance(module, Elastic):
            yield module


def narrow(model: nn.Module, widths: Mapping[Place, int]) -> None:
    """Use every elastic module at the width of its place from now on."""
    for module in elastic(model):
        module.width = widths[module.place]
