"""What a method is and what it makes: protocols, and the linear classifier of most methods."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, replace
from itertools import product
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from fewshot.support import SupportSet
from fewshot.text import Text

Grid = Mapping[str, tuple[Any, ...]]


LearnsFrom = Literal["text", "labels", "labels or text", "images"]


class Classifier(Protocol):
    """Something fitted."""

    @property
    def measures(self) -> Mapping[str, float]:
        """Figures worth keeping with a result.

        `trained_parameters` is the count of those that gradients moved, absent where none were;
        `residual_size` is how far a residual moved what it was added to, relative to its norm.
        """
        ...

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features; softmax makes them probabilities."""
        ...


class Traits(Protocol):
    """What is known of a method before it runs, be it on cached features or end to end."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    grid: ClassVar[Grid]
    learns_from: ClassVar[LearnsFrom]
    transductive: ClassVar[bool]


class Method(Protocol):
    """A way to adapt CLIP: a frozen dataclass whose fields are its hyper-parameters.

    A method that is trained has a field `seed`, of which alone its randomness depends. Methods
    are explicit subclasses, for the sake of the defaults below.

    Attributes:
        name: What the command line and the results call it.
        grid: Field -> the values that tuning tries.
        text_recipe: Which text features `fit` wants; see `FeatureStore.text`.
        learns_from: `labels`: a support set. `text`: nothing else; `fit` takes None. `labels or
            text`: either. `images`: unlabeled ones, of which it is given all there are for
            training; `fit` takes their features (U, D), or of a support set looks at those alone.
        transductive: Whether the logits of an image depend on the images beside it, so that the
            whole query has to be classified at once.
        unit_norm: Whether features come at unit norm, or as the encoder gave them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    grid: ClassVar[Grid] = {}
    text_recipe: ClassVar[str] = "unit-mean"
    learns_from: ClassVar[LearnsFrom] = "labels"
    transductive: ClassVar[bool] = False
    unit_norm: ClassVar[bool] = True

    def fit(self, support: SupportSet, text: Text | None) -> Classifier:
        """A classifier of the support set's classes; neither argument is modified.

        Args:
            support: The labeled images.
            text: The classes' text by the method's recipe, or None where there is none.

        Raises:
            UserError: There is no text and the method cannot do without.
        """
        ...


@runtime_checkable
class Sweeper(Method, Protocol):
    """A method that tries many hyper-parameters for little more than the price of one."""

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Each variant of the grid, with the (M, C) logits its fit would give the query."""
        ...


@runtime_checkable
class Generalizer(Method, Protocol):
    """A method that also classifies classes of which it has text but no image."""

    def fit_new(self, support: SupportSet, text: Text | None, new: Text) -> Classifier:
        """A classifier of the classes of `new`, learned from the support set of others.

        Args:
            support: Labeled images of the base classes.
            text: The base classes' text.
            new: The new classes' text.
        """
        ...


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Logits that are linear in the features.

    Attributes:
        weight: (C, D).
        bias: (C,), or None for no bias.
        measures: See `Classifier`.
    """

    weight: Tensor
    bias: Tensor | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of (M, D) features."""
        return functional.linear(features, self.weight, self.bias)


AnyMethod = TypeVar("AnyMethod", bound=Method)


def variants(method: AnyMethod, grid: Grid) -> Iterator[AnyMethod]:
    """The method with every combination of the grid's values, the last field varying fastest."""
    for values in product(*grid.values()):
        yield replace(method, **dict(zip(grid, values, strict=True)))


def classify(classifier: Classifier, features: Tensor, block: int = 4096) -> Tensor:
    """(M,) int64 predicted classes of (M, D) features; never holds more than a block's logits."""
    parts = torch.split(features, block)
    return torch.cat([classifier.logits(part).argmax(dim=1) for part in parts])
