"""Rows of three classes, as scikit-learn takes them, with a text for each class."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = np.array(["cat", "ant", "bee"])  # not in the order of the alphabet
RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(3, 8))
ROWS = np.arange(60) % 3
X, Y = CENTERS[ROWS] + RNG.normal(size=(60, 8)), NAMES[ROWS]
QUERY = CENTERS[ROWS] + RNG.normal(size=(60, 8))
TEXT = (CENTERS + RNG.normal(size=(3, 8)))[np.argsort(NAMES)]


def named(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The rows by the classes' names, sorted."""
    return dict(zip(np.sort(NAMES).tolist(), rows, strict=True))


NAMED = named(TEXT)
