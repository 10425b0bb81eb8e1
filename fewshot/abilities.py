"""Abilities that some methods have beside `fit`; `isinstance` says which."""

from collections.abc import Collection, Iterable
from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from fewshot.classifier import Classifier
from fewshot.multi_label_support import MultiLabelSupport
from fewshot.support import SupportSet
from fewshot.text import Text

# What to learn from, and features (M, D) and labels (M,) to judge by.
Held = tuple[SupportSet, Tensor, Tensor]


@runtime_checkable
class SupportsNewClasses(Protocol):
    """A method that also classifies classes of which it has text but no image."""

    def fit_new_classes(
        self, support: SupportSet | None, text: Text | None, new: Text
    ) -> Classifier:
        """Return a classifier of the classes of `new`, learned from the images of others.

        Args:
            support: Labeled images of the base classes; None where the method learns from none.
            text: The base classes' text.
            new: The new classes' text.
        """
        ...


@runtime_checkable
class AdaptsToDomain(Protocol):
    """A method that moves what it fitted to images of another domain, without their labels."""

    def adapt(self, source: Classifier, images: Tensor, *, unknown: bool) -> Classifier:
        """Return a classifier of the same classes for the images' domain.

        Args:
            source: What `fit` made of the labeled source; nothing else is left of that.
            images: (U, D) unlabeled features of the target.
            unknown: True where some images may be of classes that the source does not have.
        """
        ...


@runtime_checkable
class SupportsMultiLabel(Protocol):
    """A method for which a class on an image says nothing of the other classes."""

    def fit_multi_label(self, support: MultiLabelSupport, text: Text | None) -> Classifier:
        """Return a classifier whose logits rank the images within each class.

        Args:
            support: Images of several labels each, in the form of `unit_norm`.
            text: The classes' text by the method's recipe, or None where there is none.
        """
        ...


@runtime_checkable
class TunesItself(Protocol):
    """A method that finds its settings on held-out images, where others try a grid's values."""

    def tuned(
        self, free: Collection[str], support: SupportSet, text: Text | None, held: Iterable[Held]
    ) -> Self:
        """Return the method with settings found.

        Args:
            free: The settings to find; the others stay as they are.
            support: All labeled images.
            text: The classes' text or None.
            held: Parts: what to learn from, and features (M, D) and labels (M,) to judge by.
        """
        ...
