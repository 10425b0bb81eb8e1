"""CLIP-Adapter's small networks: their output, their gradients, and a classifier of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from fewshot.classifier import require_width
from fewshot.parts.optimizers import SGD
from fewshot.parts.softmax_heads import TINY


class Adapted(NamedTuple):
    """The output of G adapters for (B, D) features f.

    Attributes:
        hidden: (G, B, H) ReLU(W1 f).
        output: (G, B, D) A(f).
        length: (G, B, 1) norm of ratio A(f) + (1 - ratio) f.
        features: (G, B, D) f', that mix at unit norm.
    """

    hidden: Tensor
    output: Tensor
    length: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False)
class Adapters:
    """G adapters of width H that take the same features.

    Attributes:
        down: (D, G H), the transposed W1 side by side, one matrix product for all.
        up: (G, H, D), each W2 transposed.
        ratio: (G, 1, 1), or its logit where `learned`.
        learned: True if the ratio is trained.
    """

    down: Tensor
    up: Tensor
    ratio: Tensor
    learned: bool

    kind: ClassVar[str] = "adapters"

    @classmethod
    def random(
        cls,
        t: Tensor,
        reduction: int,
        ratios: Sequence[float],
        learned: bool,
        generator: torch.Generator,
    ) -> Self:
        """Untrained adapters of the features (C, D) t, one for each ratio, of equal weights.

        These are uniform within 1 / sqrt(inputs), which is what torch's linear layers begin with.
        """
        dim = t.shape[1]
        width = max(1, dim // reduction)

        def weights(outputs: int, inputs: int) -> Tensor:
            bound = 1 / math.sqrt(inputs)
            return torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator).to(t)

        down, up = weights(width, dim), weights(dim, width)
        ratio = torch.tensor(ratios).to(t).view(-1, 1, 1)
        return cls(
            down=down.T.repeat(1, len(ratios)),
            up=up.T.repeat(len(ratios), 1, 1),
            ratio=ratio.logit() if learned else ratio,
            learned=learned,
        )

    def parameters(self) -> list[Tensor]:
        """The trained parameters."""
        return [self.down, self.up, *([self.ratio] if self.learned else [])]

    def only(self, i: int) -> "Adapters":
        """The i-th."""
        down = self.down.view(self.down.shape[0], len(self.up), -1)[:, i]
        return Adapters(down, self.up[i : i + 1], self.ratio[i : i + 1], self.learned)

    def share(self) -> Tensor:
        """(G, 1, 1) the ratio itself."""
        return self.ratio.sigmoid() if self.learned else self.ratio

    def __call__(self, f: Tensor) -> Adapted:
        """Adapt (B, D) features f."""
        hidden = torch.relu_(f @ self.down).view(f.shape[0], len(self.up), -1).transpose(0, 1)
        output = torch.relu_(hidden @ self.up)
        mixed = torch.lerp(f, output, self.share())
        length = torch.linalg.vector_norm(mixed, dim=-1, keepdim=True).clamp_min_(TINY)
        return Adapted(hidden, output, length, mixed.div_(length))

    def backward(
        self, f: Tensor, made: Adapted, of_features: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """Write the parameters' gradients.

        Args:
            f: (B, D) features.
            made: What the adapters made of them.
            of_features: (G, B, D) gradient with respect to f'; overwritten.
            gradients: As many as there are parameters, and of their shapes.
        """
        of_down, of_up, *of_ratio = gradients
        share = self.share()
        along = torch.linalg.vecdot(of_features, made.features)[..., None]
        of_output = of_features.addcmul_(made.features, along, value=-1).mul_(share / made.length)
        if of_ratio:
            of_share = (of_output * (made.output - f)).sum(dim=(1, 2), keepdim=True)
            torch.mul(of_share, 1 - share, out=of_ratio[0])  # of_output has share in it already
        through_relu(of_output, made.output)
        torch.bmm(made.hidden.mT, of_output, out=of_up)
        of_hidden = through_relu(of_output @ self.up.mT, made.hidden)
        torch.mm(f.T, of_hidden.transpose(0, 1).flatten(1), out=of_down)


class TrainedAdapters:
    """Adapters under momentum SGD.

    Args:
        start: The adapters as they begin; copied.
        momentum: Share of the last step in the next.
        weight_decay: Times the parameters, added to their gradients.

    Attributes:
        now: The adapters as they are; a step moves them in place.
    """

    def __init__(self, start: Adapters, *, momentum: float, weight_decay: float) -> None:
        self._optimizer = SGD(*start.parameters(), momentum=momentum, weight_decay=weight_decay)
        down, up, *ratio = self._optimizer.values
        self.now = replace(start, down=down, up=up, ratio=ratio[0] if ratio else start.ratio)

    def __call__(self, f: Tensor) -> Tensor:
        """(G, B, D) adapted features of (B, D) features f, by which the next step goes."""
        self._given, self._made = f, self.now(f)
        return self._made.features

    def step(self, of_features: Tensor, lr: float) -> None:
        """Move against the (G, B, D) gradient with respect to what was adapted last."""
        self.now.backward(self._given, self._made, of_features, self._optimizer.gradients)
        self._optimizer.step(lr)


@dataclass(frozen=True, eq=False)
class AdapterClassifier:
    """Cosines to weights, of features that pass an adapter first.

    Attributes:
        weight: (C, D).
        visual: What adapts the features, if anything does.
        stats: See `Classifier`.
    """

    weight: Tensor
    visual: Adapters | None
    stats: Mapping[str, float]

    kind: ClassVar[str] = "adapter"

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.weight.shape[1])
        if self.visual is not None:
            features = self.visual(features).features[0]
        return linear(features, self.weight)


def through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """Make the gradient of a ReLU's output, in place, that of its input."""
    backward = torch.ops.aten.threshold_backward.grad_input
    result: Tensor = backward(gradient, output, 0, grad_input=gradient)
    return result
