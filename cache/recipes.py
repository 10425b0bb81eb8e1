"""Text features of classes from the embeddings of prompts, as the literature makes them."""

import numpy as np
from numpy.typing import NDArray

from cache.arrays.contents import unit
from cache.errors import unknown

RECIPES = ("unit-mean", "raw-mean")


def class_text(
    recipe: str,
    embeddings: NDArray[np.float32],
    norms: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> NDArray[np.float32]:
    """(C, D) text features, one row per class.

    `unit-mean` (Tip-Adapter, GDA, APE, LP++): normalize each embedding, average, normalize.
    `raw-mean` (TaskRes, CLAP): average the embeddings as the encoder gave them. The result is not
    normalized, and TaskRes's step size depends on its norm.

    Args:
        recipe: `unit-mean` or `raw-mean`.
        embeddings: (P, D) unit norm.
        norms: (P,) norms as the encoder gave them.
        labels: (P,) class ids, each of the C at least once.

    Raises:
        UserError: No such recipe.
    """
    if recipe not in RECIPES:
        raise unknown("text recipe", recipe, RECIPES)
    weights = norms if recipe == "raw-mean" else np.ones_like(norms)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    vectors = embeddings.astype(np.float64) * weights[:, None]
    means = np.add.reduceat(vectors[order], starts) / counts[:, None]
    return means.astype(np.float32) if recipe == "raw-mean" else unit(means)
