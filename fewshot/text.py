"""The class texts: what CLIP's text tower makes of the prompts, as methods learn from it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cache.errors import UserError
from fewshot.arrays import as_tensor


@dataclass(frozen=True, eq=False)
class Text:
    """Text features of C classes. Arrays and lists are taken for tensors as well.

    Attributes:
        features: (C, D) float32, one row per class, made by the recipe that the method asks for;
            of unit norm but for `raw-mean`.
        prompts: (P, D) float32, unit norm: every prompt by itself, or None where only their
            means are known.
        labels: (P,) int64, the class of each prompt; None without prompts.
        pooled: (C, W) float32, what the tower made of each class before its last projection,
            averaged over the class's prompts: `pooled @ projection` is the `raw-mean`; None
            where a store has no such thing.
        projection: (W, D) float32, that projection; None without `pooled`.
        names: The C class names, where rows are to be matched with labels by name, as
            `FewShotClassifier` does; None where row k is the text of class k.
    """

    features: Tensor
    prompts: Tensor | None = field(default=None, repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    pooled: Tensor | None = field(default=None, repr=False)
    projection: Tensor | None = field(default=None, repr=False)
    names: tuple[str, ...] | None = None

    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        for name in ("features", "prompts", "labels", "pooled", "projection"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_tensor(given))

    def samples(self) -> tuple[Tensor, Tensor]:
        """Each prompt as a sample of its class: (P, D) unit norm and (P,) labels.

        Where only the class means are known, those: one prompt per class.
        """
        if self.prompts is None or self.labels is None:
            return torch.nn.functional.normalize(self.features), torch.arange(len(self.features))
        return self.prompts, self.labels

    def classes(self, rows: Tensor) -> "Text":
        """The text of some classes, renumbered in the order of the (c,) `rows`."""
        prompts = labels = None
        if self.prompts is not None and self.labels is not None:
            new = torch.full((len(self.features),), -1).index_put_((rows,), torch.arange(len(rows)))
            kept = new[self.labels] >= 0
            prompts, labels = self.prompts[kept], new[self.labels[kept]]
        pooled = None if self.pooled is None else self.pooled[rows]
        names = None if self.names is None else tuple(self.names[row] for row in rows.tolist())
        return Text(self.features[rows], prompts, labels, pooled, self.projection, names)


class NoTextError(UserError):
    """A method needs text and is given none."""


def required(text: Text | None, method: str) -> Tensor:
    """(C, D) class text features, for a method that cannot do without.

    Raises:
        NoTextError: There are none.
        UserError: It is an array and not a `Text`.
    """
    if text is None:
        raise NoTextError(
            f"{method} needs text features and there are none; extract or import a store with "
            "text, or use a method that learns from images alone, such as nearest-mean"
        )
    return features_of(text)


def features_of(text: object) -> Tensor:
    """(C, D) features of a class text that may have been given as an array.

    Raises:
        UserError: It was.
    """
    if not isinstance(text, Text):
        got = f"{type(text).__name__} {tuple(getattr(text, 'shape', ()))}"
        raise UserError(f"text must be a Text of (C, D) features; got {got}; give Text(features)")
    return text.features
