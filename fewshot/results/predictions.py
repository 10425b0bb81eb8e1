"""Predictions on a test split as a small file, to compare runs image by image."""

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cache.atomic import replacing
from cache.errors import UserError

# What numpy raises at files of other kinds, and at those that were cut short or spoiled.
_NO_PREDICTIONS = (
    AttributeError, BadZipFile, EOFError, KeyError, TypeError, ValueError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a classifier for M test images.

    Attributes:
        predicted: (M,) class ids.
        labels: (M,) the true ones.
        classnames: C names by class id.
        images: Digest of which images they are, in order. Only predictions of equal digest can be
            compared image by image.
    """

    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]
    classnames: tuple[str, ...]
    images: str


def digest_of_images(dataset: str, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """16 hex digits that stand for these rows of the dataset's test split."""
    content = (np.ascontiguousarray(array, np.int64).tobytes() for array in (labels, rows))
    return hashlib.sha256(b"|".join((dataset.encode(), *content))).hexdigest()[:16]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the file whole or not at all; one that is there is replaced."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            predicted=predictions.predicted.astype(np.int32),
            labels=predictions.labels.astype(np.int32),
            about=np.array(
                json.dumps({"classnames": predictions.classnames, "images": predictions.images})
            ),
        )


def read_predictions(path: Path) -> Predictions:
    """Read the predictions that `write_predictions` wrote.

    Raises:
        UserError: No such file, or not of this form.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            return Predictions(
                arrays["predicted"].astype(np.int64),
                arrays["labels"].astype(np.int64),
                tuple(about["classnames"]),
                about["images"],
            )
    except OSError as error:
        raise UserError(
            f"cannot read predictions from {path}: {error.strerror or error}; "
            "run with --save-predictions to write some"
        ) from None
    except _NO_PREDICTIONS as error:
        raise UserError(f"{path} holds no predictions ({error}); save them again") from None
