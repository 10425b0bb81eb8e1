from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import UserError
from cache.importing.import_store import import_file
from cache.store import FeatureStore
from cache.store_check import verify
from tests.feature_files import (
    N_CLASSES,
    SIZES,
    features,
    labels,
    npz,
    sets_of,
)


def test_columns_of_which_each_row_has_one_are_one_label_each(tmp_path: Path) -> None:
    one_hot = {f"{split}_labels": np.eye(N_CLASSES)[labels(n)] for split, n in SIZES.items()}
    store = FeatureStore.open(import_file(npz(tmp_path / "x.npz", **one_hot), "toy", "m", tmp_path))
    assert not store.multi_label
    np.testing.assert_array_equal(store.labels("test"), labels(SIZES["test"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": 2 * np.ones((12, 3))}, r"must be \(N, C\) of 0 and 1; train_labels is"),
        (
            {"train_labels": np.eye(12, 3)},
            "9 of 12 rows of train_labels have none, the first is row 3",
        ),
        ({"train_labels": sets_of(12)}, r"must be \(N, 3\) in every split.*those of val are not"),
        (
            {f"{s}_labels": np.ones((n, 2 if s == "test" else 3)) for s, n in SIZES.items()},
            r"must be \(N, 3\) in every split.*those of test are not",
        ),
    ],
)
def test_columns_of_labels_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        import_file(npz(tmp_path / "x.npz", **changes), "toy", "m", tmp_path)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_columns_of_labels_make_a_store_of_several_labels(tmp_path: Path, dtype: type) -> None:
    several: dict[str, Any] = {f"{s}_labels": sets_of(n).astype(dtype) for s, n in SIZES.items()}
    path = import_file(npz(tmp_path / "x.npz", **several), "toy", "m", tmp_path)
    store = FeatureStore.open(path)
    assert store.multi_label
    np.testing.assert_array_equal(store.split("test").label_sets, sets_of(SIZES["test"]))
    assert verify(path) == []
    whole = npz(
        tmp_path / "y.npz",
        features=features(30),
        labels=sets_of(30),
        **{f"{split}_{what}": None for split in SIZES for what in ("features", "labels")},
    )
    parted = FeatureStore.open(import_file(whole, "whole", "m", tmp_path))
    rows = [int(path.partition("[")[2][:-1]) for path in parted.paths("train")]
    np.testing.assert_array_equal(parted.split("train").label_sets, sets_of(30)[rows])
