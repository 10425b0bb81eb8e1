"""Proposed splits of zero-shot learning, as published: `res101.mat` and `att_splits.mat`.

Xian et al., "Zero-Shot Learning - A Comprehensive Evaluation of the Good, the Bad and the Ugly",
TPAMI 2019, https://arxiv.org/abs/1707.00600, for CUB, SUN, AWA1, AWA2, aPY and FLO. Files of
MATLAB's version 5 are read by SciPy, those of 7.3, which are HDF5, by h5py.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import UserError, count, printable

FEATURES, SPLITS = "res101.mat", "att_splits.mat"
NEEDED = {
    FEATURES: ("features", "labels"),
    SPLITS: ("allclasses_names", "trainval_loc", "test_seen_loc", "test_unseen_loc"),
}
OPTIONAL = {FEATURES: ("image_files",), SPLITS: ("att",)}


@dataclass(frozen=True, eq=False)
class ProposedSplit:
    """Features in the proposed split, seen classes first, so that the new classes come last.

    Attributes:
        arrays: By the names of `import_arrays.NAMES`.
        files: The file that each array came from.
    """

    arrays: Mapping[str, NDArray[Any]]
    files: Mapping[str, Path]


def read_proposed_split(folder: Path, *, features: bool = True) -> ProposedSplit:
    """Read the two files of a data set, without the features where they are not wanted.

    The train split is `trainval_loc`, the test split both others. `att` is taken for the classes'
    text where it is as long as the features, which holds of text features alone, and for their
    attributes elsewhere.

    Raises:
        UserError: A file is missing, damaged or of another layout, an id is out of range, or a
            class is both seen and unseen.
    """
    read = {**_read(folder / FEATURES, () if features else ("features",)), **_read(folder / SPLITS)}
    names = read["allclasses_names"]
    labels = _ids("labels", read["labels"], len(names), "classes")
    images = np.atleast_2d(read["features"]).T if features else np.empty((len(labels), 0))
    if len(images) != len(labels):
        raise UserError(
            f"features of {FEATURES} must be (D, N) for its N labels; got "
            f"{images.shape[::-1]} and {count(len(labels), 'label')}; get the file again"
        )
    train, test, order = _divided(read, names, labels)
    new = np.full(len(names), -1).astype(np.int64)
    new[order] = np.arange(len(order))
    paths = read.get("image_files")
    arrays: dict[str, NDArray[Any]] = {"classnames": np.array([names[k] for k in order])}
    for split, rows in (("train", train), ("test", test)):
        if features:
            arrays[f"{split}_features"] = images[rows]
        arrays[f"{split}_labels"] = new[labels[rows]]
        if paths is not None and len(paths) == len(labels):
            arrays[f"{split}_paths"] = np.array([paths[row] for row in rows])
    if "att" in read:
        attributes = np.atleast_2d(read["att"]).T
        fits = attributes.shape == (len(names), images.shape[1])
        if len(attributes) != len(names):
            raise UserError(
                f"att of {SPLITS} must be (A, C) for its {count(len(names), 'class', 'classes')}; "
                f"got {attributes.shape[::-1]}; get the file again"
            )
        arrays["text_features" if fits else "attributes"] = attributes[order]
    files = {
        name: folder
        / (SPLITS if name in ("classnames", "text_features", "attributes") else FEATURES)
        for name in arrays
    }
    return ProposedSplit(arrays, files)


def _divided(
    read: Mapping[str, Any], names: Sequence[str], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the train and of the test split, and the classes, the seen ones first.

    Raises:
        UserError: A row is none, or a class is both seen and unseen.
    """
    train, seen_test, unseen_test = (
        _ids(f"{part}_loc", read[f"{part}_loc"], len(labels), "images")
        for part in ("trainval", "test_seen", "test_unseen")
    )
    seen, unseen = np.unique(labels[train]), np.unique(labels[unseen_test])
    both = np.intersect1d(seen, unseen)
    if both.size:
        raise UserError(
            f"classes must be seen or unseen; {SPLITS} has "
            f"{_named(names, both)} in both trainval_loc and test_unseen_loc"
        )
    strange = np.setdiff1d(labels[seen_test], seen)
    if strange.size:
        raise UserError(
            f"test_seen_loc must be of classes of trainval_loc; {SPLITS} has "
            f"{_named(names, strange)}"
        )
    order = np.concatenate([seen, unseen])  # classes without an image are left out
    return train, np.concatenate([seen_test, unseen_test]), order


def _named(names: Sequence[str], classes: NDArray[np.int64]) -> str:
    """The first names of some classes, and the number of the others."""
    more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
    return ", ".join(printable(names[k]) for k in classes[:3].tolist()) + more


def _ids(name: str, array: Any, n: int, what: str) -> NDArray[np.int64]:
    """Positions from 0 on, of a list of ids from 1 on."""
    ids = np.asarray(array).ravel()
    whole = ids.dtype.kind in "iuf" and ids.size and bool((ids % 1 == 0).all())
    if not whole or ids.min() < 1 or ids.max() > n:
        got = f"{ids.min():g} to {ids.max():g}" if whole else f"{ids.size} of type {ids.dtype}"
        raise UserError(f"{name} must be ids from 1 to {n}, the number of {what}; got {got}")
    return ids.astype(np.int64) - 1


def _read(path: Path, unwanted: Sequence[str] = ()) -> dict[str, Any]:
    """The variables that are needed of a file, and those of the others that it has.

    Raises:
        UserError: It is not there, no MATLAB file, or one of them is missing.
    """
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}; put {FEATURES} and {SPLITS} there")
    needed = [name for name in NEEDED[path.name] if name not in unwanted]
    wanted = (*needed, *OPTIONAL[path.name])
    try:
        with path.open("rb") as file:
            version_7_3 = b"MATLAB 7.3" in file.read(128)
        found = (_hdf5 if version_7_3 else _version_5)(path, wanted)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        NotImplementedError,
        zlib.error,
    ) as e:
        raise UserError(f"{path} is no MATLAB file, or is damaged; get it again") from e
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"{path} has no {missing[0]}, and so another layout than the proposed splits'; "
            f"expected {', '.join(NEEDED[path.name])}"
        )
    return found


def _version_5(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=wanted)
    except MatReadError as error:
        raise ValueError(error) from error
    return {name: _texts(content[name]) for name in wanted if name in content}


def _texts(array: NDArray[Any]) -> Any:
    """A cell array of texts as a list; numbers as they are."""
    if array.dtype.kind != "O":
        return array
    return [str(np.asarray(cell).ravel()[0]) for cell in array.ravel()]


def _hdf5(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    import h5py

    def value(file: Any, name: str) -> Any:
        data = file[name][()]
        if data.dtype.kind != "O":
            return data.T
        return ["".join(map(chr, file[cell][()].ravel())) for cell in data.ravel()]

    with h5py.File(path) as file:
        return {name: value(file, name) for name in wanted if name in file}
