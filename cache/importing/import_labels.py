"""Labels of features from elsewhere: a class id of each image, or a column for each class."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError

MOST = 2**31  # classes; more do not come as rows of a file


def labels_of(name: str, array: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """The class id (N,) of each image, and its label set (N, C) where it may have several.

    Of several the id is the lowest.

    Args:
        name: Of the array.
        array: (N,) class ids from 0 on, or (N, C) of 0 and 1.

    Raises:
        UserError: It is neither, or an image has no label.
    """
    if array.ndim != 2:
        return _ids(name, array), None
    sets = _sets(name, array)
    return sets.argmax(axis=1), sets


def _ids(name: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    whole = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and (labels % 1 == 0).all())
    if labels.ndim != 1 or not labels.size or not whole or (labels < 0).any():
        raise UserError(
            "labels must be (N,) class ids from 0 on, or (N, C) of 0 and 1 where an image may have "
            f"several; {name} is {labels.dtype} {labels.shape}"
            + (f" from {labels.min()} on" if whole and labels.size else "")
        )
    if (labels >= MOST).any():
        raise UserError(f"labels must be class ids below {MOST:,}; {name} goes to {labels.max()}")
    return labels.astype(np.int64)


def _sets(name: str, sets: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, C) labels as they came."""
    if sets.dtype.kind not in "biuf" or not np.isin(sets, (0, 1)).all():
        raise UserError(
            f"labels of several classes must be (N, C) of 0 and 1; {name} is {sets.dtype} "
            f"{sets.shape} with other values; give (N,) class ids where an image has one label"
        )
    without = np.flatnonzero(~sets.astype(bool).any(axis=1))
    if without.size:
        raise UserError(
            f"every image needs a label; {without.size} of {len(sets)} rows of {name} have none, "
            f"the first is row {without[0]}; drop them"
        )
    return sets.astype(bool)
