"""The recipe of a method's paper, which `fit --official` follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from cache.errors import unknown

AnyValue = TypeVar("AnyValue")


@dataclass(frozen=True)
class PublishedRecipe:
    """How a paper ran its method on a dataset, as far as no test image has a say in it.

    Attributes:
        settings: Field -> its value.
        grid: Field -> the values that were searched, on validation images.
        tune: Which images those are, as a tuning protocol; `none` where nothing was searched.
        views: V, the augmented crops of each train image; 0 for its center crop alone.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tune: Literal["none", "val", "full-val"] = "none"
    views: int = 0


def of_dataset(table: Mapping[str, AnyValue], dataset: str) -> AnyValue:
    """Return what a paper's table has for a dataset.

    Raises:
        UserError: The paper did not use the dataset.
    """
    if dataset not in table:
        raise unknown("dataset with a published recipe", dataset, table)
    return table[dataset]
