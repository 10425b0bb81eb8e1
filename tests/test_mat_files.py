from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from cache.errors import UserError
from cache.importing.import_store import import_file
from cache.store import FeatureStore
from fewshot import evaluate

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
UNSEEN = [0, 3]  # ids from 0 of classes without train images
DIM = 8
LABELS = np.arange(48) % 6
FEATURES = np.random.default_rng(0).normal(size=(48, DIM)) + np.eye(6, DIM)[LABELS]
ROWS = np.arange(48)
HELD = np.isin(LABELS, UNSEEN)
TRAIN, SEEN = ROWS[~HELD & (ROWS < 30)], ROWS[~HELD & (ROWS >= 30) & (ROWS < 44)]


def cells(texts: list[str]) -> Any:
    array = np.empty((len(texts), 1), object)
    for i, text in enumerate(texts):
        array[i, 0] = text
    return array


def variables(att: int = DIM) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two files hold, ids from 1 on."""
    features = {
        "features": FEATURES.T,
        "labels": LABELS[:, None] + 1.0,
        "image_files": cells([f"/home/x/{row}.jpg" for row in ROWS]),
    }
    splits = {
        "att": (np.eye(6, att) + 0.1).T,
        "allclasses_names": cells(NAMES),
        "trainval_loc": TRAIN[:, None] + 1.0,
        "test_seen_loc": SEEN[:, None] + 1.0,
        "test_unseen_loc": ROWS[HELD][:, None] + 1.0,
    }
    return features, splits


def write(folder: Path, features: dict[str, Any], splits: dict[str, Any]) -> Path:
    savemat(folder / "res101.mat", features)
    savemat(folder / "att_splits.mat", splits)
    return folder


def write_7_3(path: Path, content: dict[str, Any]) -> None:
    """The same as MATLAB's version 7.3 has it: HDF5, transposed, texts as references to codes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in content.items():
            if value.dtype.kind != "O":
                file[name] = value.T
                continue
            references = []
            for i, text in enumerate(value.ravel()):
                codes = np.array(list(map(ord, text)), np.uint16)[:, None]
                references.append(file.create_dataset(f"#refs#/{name}{i}", data=codes).ref)
            file.create_dataset(name, data=np.array([references], h5py.ref_dtype))
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")


def imported(folder: Path, root: Path) -> FeatureStore:
    return FeatureStore.open(import_file(folder, "animals", "ResNet-101", root))


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_a_proposed_split_becomes_a_store_of_seen_then_unseen_classes(
    tmp_path: Path, version: str
) -> None:
    if version == "5":
        write(tmp_path, *variables())
    else:
        for name, content in zip(("res101", "att_splits"), variables(), strict=True):
            write_7_3(tmp_path / f"{name}.mat", content)
    store = imported(tmp_path, tmp_path / "stores")
    assert store.classnames == ("bee", "cat", "elk", "fox", "ant", "dog")
    order = [NAMES.index(name) for name in store.classnames]
    test = np.concatenate([SEEN, ROWS[HELD]])
    for split, rows in (("train", TRAIN), ("test", test)):
        assert [order[k] for k in store.labels(split)] == LABELS[rows].tolist()
        unit = FEATURES[rows] / np.linalg.norm(FEATURES[rows], axis=1, keepdims=True)
        np.testing.assert_allclose(store.features(split), unit, atol=2e-3)
        assert store.paths(split) == [f"/home/x/{row}.jpg" for row in rows]
    text = np.eye(6, DIM)[order] + 0.1
    np.testing.assert_allclose(
        store.text(), text / np.linalg.norm(text, axis=1)[:, None], atol=2e-3
    )


def test_the_unseen_classes_of_the_split_are_the_unseen_ones_of_the_result(tmp_path: Path) -> None:
    store = imported(write(tmp_path, *variables()), tmp_path / "stores")
    quick = "ship latent=4 hidden=8 epochs=2"
    result = evaluate(store, "ridge", shots=4, tune="none", setting="generalized", synthesize=quick)
    assert (result.n_support, result.n_test, result.n_classes) == (16, len(SEEN) + 16, 6)
    predicted = store.features("test") @ store.text().T
    right = predicted.argmax(axis=1) == store.labels("test")
    by_class = [right[store.labels("test") == k].mean() for k in range(6)]
    zero = evaluate(store, "zero-shot", setting="generalized")
    assert zero.accuracies["seen"] == pytest.approx(np.mean(by_class[:4]))
    assert zero.accuracies["unseen"] == pytest.approx(np.mean(by_class[4:]))


def test_attributes_of_another_length_than_the_features_are_kept_for_what_takes_them(
    tmp_path: Path,
) -> None:
    store = imported(write(tmp_path, *variables(att=5)), tmp_path / "stores")
    assert (store.text_sets, FeatureStore.open(store.path).attributes is None) == ((), False)
    order = [NAMES.index(name) for name in store.classnames]
    assert store.attributes is not None
    np.testing.assert_allclose(store.attributes, (np.eye(6, 5) + 0.1)[order], atol=1e-6)
    with h5py.File(store.path) as file:
        assert file.attrs["schema"] == 2  # an older version says that it is too old
    asked = {"shots": 4, "tune": "none", "setting": "generalized"}
    quick = "tf-vaegan latent=3 hidden=6 epochs=1"
    result = evaluate(store, "nearest-mean", **asked, synthesize=quick)  # type: ignore[arg-type]
    assert set(result.accuracies) == {"seen", "unseen"}
    with pytest.raises(UserError, match="has no text, and ship makes features of class texts"):
        evaluate(store, "nearest-mean", **asked, synthesize="ship")  # type: ignore[arg-type]


def changed(**values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    features, splits = variables()
    for name, value in values.items():
        where = features if name in features else splits
        where[name] = value
        if value is None:
            del where[name]
    return features, splits


BAD = [
    (changed(features=None), r"res101.mat has no features, and so another layout"),
    (changed(trainval_loc=None), r"att_splits.mat has no trainval_loc, and so another layout"),
    (changed(features=FEATURES), r"features of res101.mat must be \(D, N\).* got \(48, 8\) and 48"),
    (changed(labels=LABELS[:, None]), r"labels must be ids from 1 to 6.* got 0 to 5"),
    (changed(labels=LABELS[:, None] + 1.5), r"labels must be ids .* got 48 of type float64"),
    (changed(trainval_loc=[[1.0, 99.0]]), r"trainval_loc must be ids from 1 to 48.* got 1 to 99"),
    (changed(test_unseen_loc=np.zeros((0, 1))), r"test_unseen_loc must be ids .* got 0 of type"),
    (changed(att=np.ones((5, 4))), r"att of att_splits.mat must be \(A, C\).* 6 .*got \(5, 4\)"),
    (changed(att=np.full((5, 6), np.nan)), r"attributes must be \(C, A\) finite numbers"),
    (
        changed(test_unseen_loc=ROWS[LABELS == 1] + 1.0),
        r"att_splits.mat has bee in both trainval_loc and test_unseen_loc",
    ),
    (
        changed(test_seen_loc=ROWS[LABELS == 3] + 1.0),
        r"test_seen_loc must be of classes of trainval_loc; att_splits.mat has dog",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_split_that_cannot_be_is_refused_in_one_line(
    content: Any, message: str, tmp_path: Path
) -> None:
    write(tmp_path, *content)
    with pytest.raises(UserError, match=message) as error:
        imported(tmp_path, tmp_path / "stores")
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    write(tmp_path, *variables())
    whole = (tmp_path / "res101.mat").read_bytes()
    damaged = [b"", b"no matlab", whole[:200], b"MATLAB 7.3".ljust(600, b" ")]
    for content in damaged:
        (tmp_path / "res101.mat").write_bytes(content)
        with pytest.raises(UserError, match=r"res101.mat (is no MATLAB file|has no )"):
            imported(tmp_path, tmp_path / "stores")
    (tmp_path / "res101.mat").unlink()
    with pytest.raises(UserError, match=r"no res101.mat in .*; put res101.mat and att_splits.mat"):
        imported(tmp_path, tmp_path / "stores")
