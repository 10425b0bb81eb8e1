"""Predictions on a test split as a small file, to compare runs image by image."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError
from cache.files.atomic import replacing

LARGEST = 2**28  # bytes of all arrays together: 30 million images


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
        with path.open("rb") as file:
            return _checked(file)
    except OSError as error:
        raise UserError(
            f"cannot read predictions from {path}: {error.strerror or error}; "
            "run with --save-predictions to write some"
        ) from None
    except Exception as error:  # whatever numpy and zipfile raise at bytes that are no such file
        raise UserError(f"{path} holds no predictions ({error}); save them again") from None


def _checked(file: BinaryIO) -> Predictions:
    """The predictions in an open file.

    Raises:
        Exception: It does not have the form that `write_predictions` gives it.
    """
    with ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"expected at most {LARGEST} bytes, got {size}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        predicted, labels = (_class_ids(name, arrays[name]) for name in ("predicted", "labels"))
    names, images = about["classnames"], about["images"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classnames: expected a list of texts")
    if not isinstance(images, str):
        raise ValueError("images: expected a text")
    if len(predicted) != len(labels) or not len(labels):
        raise ValueError(f"expected two of each image, got {len(predicted)} and {len(labels)}")
    if max(predicted.max(), labels.max()) >= len(names):
        raise ValueError(f"expected class ids below {len(names)}, the number of class names")
    return Predictions(predicted, labels, tuple(names), images)


def _class_ids(name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected (M,) class ids, got {array.dtype} {array.shape}")
    ids = array.astype(np.int64)
    if (ids < 0).any():  # or above what 64 bits hold
        raise ValueError(f"{name}: expected class ids from 0 on")
    return ids
