"""CraFT's prediction refiner: a small network that corrects logits, and how it is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax

from fewshot.classifier import require_width
from fewshot.parts.feature_adapters import through_relu

Start = Literal["zero", "random"]


@dataclass(frozen=True, eq=False)
class Refiner:
    """Logits o' = o + W2 ReLU(W1 o + b1) + b2 of C classes, with H hidden units.

    Attributes:
        w1: (H, C).
        b1: (H,).
        w2: (C, H).
        b2: (C,).
        centered: W1 gets o less its mean over the classes, to which softmax is blind.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    centered: bool

    kind: ClassVar[str] = "refiner"

    @classmethod
    def untrained(
        cls,
        like: Tensor,
        n_classes: int,
        hidden: int,
        *,
        seed: int,
        start: Start = "zero",
        centered: bool = True,
    ) -> "Refiner":
        """Weights as torch draws a linear layer's, U(-1, 1) / sqrt(inputs).

        Args:
            like: Whose type and device the tensors get.
            n_classes: C.
            hidden: H.
            seed: Random seed for the weights.
            start: Of W2 and b2; at zero the logits are as they came.
            centered: See the class.
        """
        generator = torch.Generator().manual_seed(seed)

        def uniform(inputs: int, *shape: int) -> Tensor:
            bound = 1 / math.sqrt(inputs)
            return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(like)

        first = uniform(n_classes, hidden, n_classes), uniform(n_classes, hidden)
        if start == "random":
            second = uniform(hidden, n_classes, hidden), uniform(hidden, n_classes)
        else:
            second = like.new_zeros(n_classes, hidden), like.new_zeros(n_classes)
        return cls(*first, *second, centered)

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W1, b1, W2 and b2."""
        return self.w1, self.b1, self.w2, self.b2

    def with_parameters(self, values: Sequence[Tensor]) -> "Refiner":
        """The same refiner with other tensors as its parameters."""
        w1, b1, w2, b2 = values
        return Refiner(w1, b1, w2, b2, self.centered)

    def __call__(self, logits: Tensor) -> Tensor:
        """Refine (B, C) logits."""
        hidden = linear(self._input(logits), self.w1, self.b1).relu()
        return logits + linear(hidden, self.w2, self.b2)

    def backward(
        self, logits: Tensor, labels: Tensor, consistency: float, gradients: Sequence[Tensor]
    ) -> None:
        """Write the gradients of `consistent_loss` of the refined logits and the plain ones.

        Args:
            logits: (B, C) plain logits.
            labels: (B,).
            consistency: Weight of the divergence.
            gradients: Of the parameters' shapes, in their order.
        """
        of_w1, of_b1, of_w2, of_b2 = gradients
        x = self._input(logits)
        hidden = linear(x, self.w1, self.b1).relu_()
        refined = torch.softmax(logits + linear(hidden, self.w2, self.b2), dim=1)
        # Cross-entropy pulls to the label, the divergence to the plain prediction.
        error = (1 + consistency) * refined - consistency * torch.softmax(logits, dim=1)
        error[torch.arange(len(labels), device=labels.device), labels] -= 1
        error /= len(labels)
        torch.mm(error.T, hidden, out=of_w2)
        torch.sum(error, dim=0, out=of_b2)
        of_hidden = through_relu(error @ self.w2, hidden)
        torch.mm(of_hidden.T, x, out=of_w1)
        torch.sum(of_hidden, dim=0, out=of_b1)

    def _input(self, logits: Tensor) -> Tensor:
        return logits - logits.mean(dim=1, keepdim=True) if self.centered else logits


@dataclass(frozen=True, eq=False)
class RefinedClassifier:
    """Logits that a refiner corrects.

    Attributes:
        weight: (C, D), of the logits that it gets.
        refiner: The network.
        stats: See `Classifier`.
    """

    weight: Tensor
    refiner: Refiner
    stats: Mapping[str, float]

    kind: ClassVar[str] = "refined"

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.weight.shape[1])
        return self.refiner(linear(features, self.weight))


def consistent_loss(logits: Tensor, labels: Tensor, other: Tensor, consistency: float) -> Tensor:
    """Cross-entropy + consistency KL(softmax(other) || softmax(logits)), a mean over images.

    The refiner keeps to the plain logits by it, and the prompts to the refined ones.

    Args:
        logits: (..., B, C).
        labels: (B,).
        other: (..., B, C) logits whose predictions to keep to.
        consistency: Weight of the divergence.

    Returns:
        (...,) losses.
    """
    log_p, log_q = log_softmax(logits, dim=-1), log_softmax(other, dim=-1)
    loss = -log_p[..., torch.arange(len(labels), device=labels.device), labels].mean(dim=-1)
    divergence = (log_q.exp() * (log_q - log_p)).sum(dim=-1).mean(dim=-1)
    return loss + consistency * divergence
