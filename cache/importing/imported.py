"""Features from elsewhere, each array in its place: splits, text, attributes and class names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImportedSplit:
    """N rows: features (N, D) as they came, labels (N,), and a path or a row's name for each.

    Where an image may have several labels, they are in `label_sets`, (N, C) bool, and `labels` has
    the first of each.
    """

    features: NDArray[Any]
    labels: NDArray[np.int64]
    paths: list[str]
    label_sets: NDArray[np.bool_] | None = None

    def at(self, rows: Sequence[int]) -> "ImportedSplit":
        """These rows."""
        sets = None if self.label_sets is None else self.label_sets[rows]
        paths = [self.paths[row] for row in rows]
        return ImportedSplit(self.features[rows], self.labels[rows], paths, sets)


@dataclass(frozen=True)
class ImportedText:
    """P prompts: embeddings (P, D) as they came, labels (P,) and sentences."""

    embeddings: NDArray[Any]
    labels: NDArray[np.int64]
    prompts: list[str]


@dataclass(frozen=True)
class Imported:
    """All that is taken over.

    Attributes:
        names: What each array is called in the file.
        splits: Those of train, val and test that there are.
        text: The classifier, where there is one.
        attributes: (C, A) numbers that describe the classes, where there are some.
        classnames: C names by class id.
        stratified: True if the splits are our own, of rows that came in one piece.
    """

    names: Mapping[str, str]
    splits: Mapping[str, ImportedSplit]
    text: ImportedText | None
    attributes: NDArray[Any] | None
    classnames: tuple[str, ...]
    stratified: bool
