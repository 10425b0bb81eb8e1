"""The text of a store's classes: its prompts, and one text feature per class made of them."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache.arrays.contents import Contents
from cache.arrays.store_format import text_sets_of
from cache.errors import UserError, unknown
from cache.recipes import class_text


@dataclass(frozen=True)
class ClassText:
    """The text features of C classes by one recipe, and the P prompts that they were made of.

    Attributes:
        features: (C, D), one row per class, by the recipe.
        prompts: (P, D) unit norm, each prompt by itself.
        labels: (P,) class ids of the prompts.
        sentences: P prompts as they were written.
        pooled: (C, W), the `raw-mean` text just before the text tower's last layer; None where the
            store has no such thing: imported, of a model whose text tower ends otherwise, or
            extracted before stores held it.
        projection: (W, D), that layer: `pooled @ projection` is that text; None without `pooled`.
    """

    features: NDArray[np.float32]
    prompts: NDArray[np.float32]
    labels: NDArray[np.int64]
    sentences: list[str] = field(repr=False)
    pooled: NDArray[np.float32] | None
    projection: NDArray[np.float32] | None

    @classmethod
    def of(cls, contents: Contents, recipe: str, prompt_set: str | None) -> Self:
        """The text in a store's arrays; arguments and errors are those of its `class_text`."""
        name = _prompt_set(contents, recipe, prompt_set)
        embeddings, norms, labels = (
            contents.array(f"text/{name}/{key}") for key in ("embeddings", "norms", "labels")
        )
        pooled, projection = _tower(contents, _prompt_set(contents, "raw-mean", prompt_set))
        return cls(
            features=class_text(recipe, embeddings, norms, labels),
            prompts=embeddings,
            labels=labels,
            sentences=contents.strings(f"text/{name}/prompts"),
            pooled=pooled,
            projection=projection,
        )


def _prompt_set(contents: Contents, recipe: str, name: str | None) -> str:
    """The set of that name, or the usual one of the recipe."""
    sets = text_sets_of(contents.places)
    if not sets:
        raise UserError(
            f"{contents.address} holds no text features; use a method that needs none, "
            "such as nearest-mean, or make it again with a model that reads text"
        )
    if name is None:
        usual = ("templates-raw", "templates") if recipe == "raw-mean" else ("templates",)
        name = next((known for known in usual if known in sets), None)
    if name is None and len(sets) > 1:
        raise UserError(f"{contents.address} has several prompt sets; name one: {', '.join(sets)}")
    name = name or sets[0]
    if name not in sets:
        raise unknown("prompt set", name, sets)
    return name


def _tower(
    contents: Contents, prompt_set: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
    """The `pooled` and the `projection` of a `ClassText`."""
    if not {f"text/{prompt_set}/pooled", "text_projection"} <= contents.places.keys():
        return None, None
    pooled = contents.array(f"text/{prompt_set}/pooled")
    labels = contents.array(f"text/{prompt_set}/labels")
    means = class_text("raw-mean", pooled, np.ones(len(labels), np.float32), labels)
    return means, contents.array("text_projection")
