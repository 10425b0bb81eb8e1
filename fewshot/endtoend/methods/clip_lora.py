"""CLIP-LoRA: W + s B A beside query, key and value of both towers' blocks.

Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024,
https://arxiv.org/abs/2405.18541; LoRA is Hu et al.'s, ICLR 2022, https://arxiv.org/abs/2106.09685.
As the authors' code has it: s = alpha / sqrt(r), and one template for all datasets. The paper's s
of 1 is alpha = sqrt(r). The code draws its validation images before its training images, so its few
shots are not CoOp's; here they are, unless --official asks for theirs. The code also multiplies B A
out, for a product as dear as W's; here x goes through A and then B.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.optim import Optimizer

from cache.errors import UserError
from fewshot.checks import fraction, positive, whole
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.parts.blocks import Towers
from fewshot.endtoend.parts.dropout import ByteDropout
from fewshot.endtoend.parts.lora_pro import LoRAPro
from fewshot.endtoend.parts.weight_delta import (
    OnMatrices,
    WeightDelta,
    drawn_weight,
)


class LoRALinear(WeightDelta):
    """A matrix and a low-rank update of it, at first of no effect.

    Attributes:
        A: (r, in), drawn as `nn.Linear` draws its weight.
        B: (out, r), zero.
        scale: s.
        dropout: Of the inputs to A, in training.
    """

    def __init__(
        self,
        plain: nn.Linear,
        rank: int,
        scale: float,
        *,
        dropout: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(plain)
        self.scale, self.dropout = scale, ByteDropout(dropout)
        self.A = nn.Parameter(drawn_weight(rank, plain.in_features, generator).to(plain.weight))
        self.B = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in), through r dimensions."""
        y: Tensor = self.plain(x)
        return y + self.scale * linear(linear(self.dropout(x), self.A), self.B)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """W + s B A."""
        return self.weight + self.scale * self.B @ self.A, self.plain.bias


@dataclass(frozen=True)
class CLIPLoRA(OnMatrices):
    """Pairs A, B beside query, key and value of every block: W x + s B A dropout(x).

    Attributes:
        template: The prompt, with {} for the class name; empty for the dataset's own first one.
        rank: Rank of the update, r.
        alpha: Numerator of the scale of the update: s = alpha / sqrt(r).
        dropout: Share of the inputs to A that are zeroed in training.
        pro: Let LoRA-Pro choose the steps (https://arxiv.org/abs/2407.18242) instead of AdamW.
    """

    towers: Towers = "both"
    template: str = "a photo of a {}."
    lr: float = 2e-4
    matrices: str = "q,k,v"
    rank: int = 2
    alpha: float = 1.0
    dropout: float = 0.25
    pro: bool = False

    name: ClassVar[str] = "clip-lora"
    summary: ClassVar[str] = (
        "Adjusts the whole model by small additions to its weights. Try this one first."
    )
    published: ClassVar[bool] = True
    val_first: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "rank")
        positive(self, "alpha")
        fraction(self, "dropout", below_one=True)
        if self.pro and self.head != "frozen":
            raise UserError(f"pro takes pairs alone; got head={self.head}; use head=frozen")

    @property
    def scale(self) -> float:
        """S."""
        return self.alpha / math.sqrt(self.rank)

    def attach(self, clip: Clip, classnames: Sequence[str], templates: Sequence[str]) -> Learner:
        """Put the pairs in; each class has one prompt, as the authors have it."""
        return super().attach(clip, classnames, templates[:1])

    def deltas(
        self, plain: Mapping[str, nn.Linear], generator: torch.Generator
    ) -> dict[str, WeightDelta]:
        """W + s B A."""
        return {
            path: LoRALinear(
                layer, self.rank, self.scale, dropout=self.dropout, generator=generator
            )
            for path, layer in plain.items()
        }

    def optimizer(self, learner: Learner) -> Optimizer:
        """AdamW on A and B, or LoRA-Pro on the pairs."""
        if not self.pro:
            return super().optimizer(learner)
        factors = list(learner.parameters.values())
        pairs = zip(factors[::2], factors[1::2], strict=True)
        return LoRAPro(
            [(A, B, self.scale) for A, B in pairs], self.lr, weight_decay=self.weight_decay
        )
