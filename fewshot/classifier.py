"""A classifier: what a method makes, as a formula of the features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from cache.errors import UserError
from fewshot.arrays import as_tensor


def require_width(features: Tensor, width: int) -> None:
    """Raise UserError unless the features to classify are as wide as those learned from."""
    if features.shape[-1:] != (width,):
        raise UserError(
            f"features to classify must be (M, {width}); got {tuple(features.shape)}; give those "
            "of the model that the classifier learned from"
        )


class Classifier(Protocol):
    """Something fitted."""

    @property
    def stats(self) -> Mapping[str, float]:
        """Figures worth keeping with a result.

        `trained_parameters` is the count of those that gradients moved, absent where none were;
        `residual_size` is how far a residual moved what it was added to, relative to its norm.
        """
        ...

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features; softmax makes them probabilities."""
        ...


class BlockedClassifier(ABC):
    """A classifier that needs much memory for each query, and so takes a block at a time.

    The formula is `block_logits`, without a loop, so that a graph can be made of it; `logits` is
    the loop.
    """

    @property
    @abstractmethod
    def block(self) -> int:
        """Queries in a block, at least one."""

    @abstractmethod
    def block_logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features, all at once."""

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        return torch.cat([self.block_logits(part) for part in torch.split(features, self.block)])


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Logits that are linear in the features.

    Attributes:
        weight: (C, D).
        bias: (C,), or None for no bias.
        stats: See `Classifier`.
    """

    weight: Tensor
    bias: Tensor | None = None
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "linear"

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        require_width(features, self.weight.shape[1])
        return functional.linear(features, self.weight, self.bias)


def classify(classifier: Classifier, features: ArrayLike | Tensor, block: int = 4096) -> Tensor:
    """(M,) int64 predicted classes of (M, D) features; never holds more than a block's logits.

    Raises:
        UserError: The features are not as wide as those that the classifier learned from.
    """
    parts = torch.split(as_tensor(features), block)
    return torch.cat([classifier.logits(part).argmax(dim=1) for part in parts])
