"""A method: what is known of it before it runs, and what it makes of a support set and of text."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, replace
from itertools import product
from typing import Any, ClassVar, Literal, Self, TypeVar

from torch import Tensor

from cache.arrays.image_tower import ImageTower
from cache.errors import UserError
from fewshot.classifier import Classifier, LinearClassifier
from fewshot.published_recipe import PublishedRecipe
from fewshot.support import SupportSet
from fewshot.text import Text

Grid = Mapping[str, tuple[Any, ...]]
LearnsFrom = Literal["text", "labels", "labels or text", "images"]


@dataclass(frozen=True, order=True)
class PracticalSize:
    """The largest task that a method tunes and fits in seconds; the larger, the quicker it is.

    The methods' own are from the seconds that tuning and fitting in five folds took on one core,
    512 features, up to 4000 images and 100 classes: all together a minute at 400 images, and two
    minutes at 4000.

    Attributes:
        images: N.
        logits: N C, what one training step computes.
        seconds: What tuning and fitting in five folds took at 200 images of 10 classes on one
            core, by which progress estimates the time left.
    """

    images: float = math.inf
    logits: float = math.inf
    seconds: float = field(default=0.3, compare=False)


class MethodInfo(ABC):
    """The facts of a method, on cached features or end to end.

    Attributes:
        name: What the command line and the results call it.
        summary: One or two sentences for people who have photos and no use for papers.
        grid: Field -> the values that tuning tries.
        learns_from: `labels`: a support set. `text`: text alone. `labels or text`: either.
            `images`: unlabeled images and text.
        transductive: True where the logits of an image depend on the images beside it, so that the
            whole query has to be classified at once.
        seeded: True where a seed that is asked for counts even without few shots to draw.
        blends: True where its logits are blended with zero-shot's; see
            `model_selection.blending`. Only those of unit-norm features can be.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    summary: ClassVar[str] = ""
    grid: ClassVar[Grid] = {}
    learns_from: ClassVar[LearnsFrom] = "labels"
    transductive: ClassVar[bool] = False
    blends: ClassVar[bool] = False
    seeded: ClassVar[bool] = False

    @classmethod
    def needs_support(cls, shots: int) -> bool:
        """True if the method, asked for K shots, learns from labels."""
        return cls.learns_from == "labels" or (cls.learns_from == "labels or text" and shots > 0)

    @classmethod
    def takes_support(cls) -> bool:
        """True if a support set makes a difference, if only by its unlabeled images."""
        return cls.learns_from != "text"

    @classmethod
    def unsupervised(cls) -> bool:
        """True if the method learns from unlabeled images."""
        return cls.learns_from == "images"


class Method(MethodInfo):
    """A way to adapt CLIP: a frozen dataclass whose fields are its hyper-parameters.

    A method that is trained has a field `seed`, the only source of randomness.

    Attributes:
        text_recipe: The text features that `fit` needs; see `FeatureStore.text`.
        unit_norm: True if features come at unit norm, False if as the encoder gave them.
        practical_size: The largest task that it is worth trying on.
        saved_as: The dataclasses that its classifiers consist of, each with its name in a class
            variable `kind`. An adapter file holds that name and the fields.
    """

    blends: ClassVar[bool] = True
    text_recipe: ClassVar[str] = "unit-mean"
    unit_norm: ClassVar[bool] = True
    practical_size: ClassVar[PracticalSize] = PracticalSize()
    saved_as: ClassVar[tuple[type, ...]] = (LinearClassifier,)

    def on_store(self, *, pooled: bool) -> Self:
        """Return the method with what its settings leave to the store settled.

        Args:
            pooled: True if the store has pooled images.
        """
        return self

    @abstractmethod
    def fit(self, support: SupportSet, text: Text | None) -> Classifier:
        """Return a classifier of the support set's classes; neither argument is modified.

        Args:
            support: The labeled images.
            text: The classes' text by the method's recipe, or None where there is none.

        Raises:
            UserError: There is no text and the method cannot do without.
        """

    def fit_unlabeled(self, images: Tensor | None, text: Text | None) -> Classifier:
        """Return a classifier learned without labels, where the method can do without.

        Args:
            images: (U, D) features of all unlabeled images for a method that learns from them,
                else None.
            text: As in `fit`.

        Raises:
            UserError: The method needs labels, or text or images that are not there.
        """
        raise UserError(f"{self.name} learns from labeled images and got none; give some shots")

    @property
    def reads_pooled(self) -> bool:
        """True if its settings make it read pooled images, `Split.pooled`, in place of features."""
        return False

    def fit_pooled(self, images: Tensor | None, tower: ImageTower, text: Text | None) -> Classifier:
        """Return a classifier of pooled images, learned without labels, where the method can.

        Args:
            images: (U, w) pooled images.
            tower: The layers that make features of them.
            text: As in `fit`.

        Raises:
            UserError: The method reads features.
        """
        raise UserError(
            f"{self.name} learns from features and got pooled images; use fit_unlabeled"
        )

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        """Yield each variant of the grid, in any order, with its (M, C) logits of the query.

        As written here each variant is fitted again. A method overrides this where trying many
        hyper-parameters can cost little more than trying one; see `sweep_prepared`.
        """
        for variant in variants(self, grid):
            yield variant, variant.fit(support, text).logits(query)

    def published_recipe(self, dataset: str) -> PublishedRecipe:
        """Return the recipe of the method's paper for a dataset.

        Raises:
            UserError: There is none, or none for this dataset.
        """
        raise UserError(
            f"{self.name} has no published recipe that could be followed; leave --official out"
        )

    def search_published(
        self, grid: Grid, support: SupportSet, text: Text | None, features: Tensor, labels: Tensor
    ) -> Self:
        """Return the variant of the grid that is most accurate, of equal ones the first.

        That is how papers choose. A method overrides this where its paper searched in another way,
        or where the same variant can be found faster.

        Args:
            grid: Of the published recipe.
            support: The support set.
            text: The classes' text or None.
            features: (M, D) validation images.
            labels: (M,) their classes.
        """
        hits = {
            variant: int((logits.argmax(dim=1) == labels).sum())
            for variant, logits in self.sweep(grid, support, text, features)
        }
        return max(variants(self, grid), key=hits.__getitem__)


AnyMethod = TypeVar("AnyMethod", bound=Method)


def variants(method: AnyMethod, grid: Grid) -> Iterator[AnyMethod]:
    """Yield the method with every combination of the grid's values, the last field fastest."""
    for values in product(*grid.values()):
        yield replace(method, **dict(zip(grid, values, strict=True)))


def sweep_prepared(
    method: AnyMethod,
    grid: Grid,
    scoring: tuple[str, ...],
    prepare: Callable[[AnyMethod], Callable[[AnyMethod], Tensor]],
) -> Iterator[tuple[AnyMethod, Tensor]]:
    """Yield each variant of the grid with its logits, prepared once for all that share a fit.

    Args:
        method: Where the grid says nothing, its fields stand.
        grid: Candidates of any of its fields.
        scoring: The fields that act after fitting; variants that differ in these alone share a fit.
        prepare: Fits a variant, and returns the function that computes the logits of every variant
            that shares the fit.
    """
    unscored = {name: getattr(method, name) for name in scoring}
    sharing: dict[AnyMethod, list[AnyMethod]] = {}
    for variant in variants(method, grid):
        sharing.setdefault(replace(variant, **unscored), []).append(variant)
    for fitted, several in sharing.items():
        logits_of = prepare(fitted)
        for variant in several:
            yield variant, logits_of(variant)
