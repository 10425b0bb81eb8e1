"""What a method is and what it makes: protocols, and the linear classifier of most methods."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, replace
from itertools import product
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from cache.errors import UserError
from fewshot.support import SupportSet

Grid = Mapping[str, tuple[Any, ...]]


class Classifier(Protocol):
    """Something fitted."""

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) unit-norm features; softmax makes them probabilities."""
        ...


class Method(Protocol):
    """A way to adapt CLIP: a frozen dataclass whose fields are its hyper-parameters.

    Attributes:
        name: What the command line and the results call it.
        grid: Field -> the values that tuning tries.
        text_recipe: Which text features `fit` wants; see `FeatureStore.text`.
        needs_support: False where text is enough and `fit` takes None for the support set.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    grid: ClassVar[Grid]
    text_recipe: ClassVar[str]
    needs_support: ClassVar[bool]

    def fit(self, support: SupportSet, text: Tensor | None) -> Classifier:
        """A classifier of the support set's classes; neither argument is modified.

        Args:
            support: The labelled images.
            text: (C, D) class text features by the method's recipe, or None where there are none.

        Raises:
            UserError: There is no text and the method cannot do without.
        """
        ...


@runtime_checkable
class Sweeper(Method, Protocol):
    """A method that tries many hyper-parameters for little more than the price of one."""

    def sweep(
        self, grid: Grid, support: SupportSet, text: Tensor | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Each variant of the grid, with the (M, C) logits its fit would give the query."""
        ...


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Logits that are linear in the features.

    Attributes:
        weight: (C, D).
        bias: (C,), or None for no bias.
    """

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        return functional.linear(features, self.weight, self.bias)


AnyMethod = TypeVar("AnyMethod", bound=Method)


def variants(method: AnyMethod, grid: Grid) -> Iterator[AnyMethod]:
    """The method with every combination of the grid's values, the last field varying fastest."""
    for values in product(*grid.values()):
        yield replace(method, **dict(zip(grid, values, strict=True)))


def required(text: Tensor | None, method: str) -> Tensor:
    """The text features, for a method that cannot do without.

    Raises:
        UserError: There are none.
    """
    if text is None:
        raise UserError(
            f"{method} needs text features and there are none; extract or import a store with "
            "text, or use a method that learns from images alone, such as nearest-mean"
        )
    return text


def predict(classifier: Classifier, features: Tensor, block: int = 4096) -> Tensor:
    """(M,) int64 predicted classes of (M, D) features; never holds more than a block's logits."""
    parts = torch.split(features, block)
    return torch.cat([classifier.logits(part).argmax(dim=1) for part in parts])
