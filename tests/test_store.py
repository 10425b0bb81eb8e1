import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from cache.errors import UserError
from cache.identity import fingerprint
from cache.store import FeatureStore
from tests.toy_store import (
    CLASSNAMES,
    DIM,
    IDENTITY,
    N_VIEWS,
    SIZES,
    SKIPPED,
    labels,
    raw_features,
    write_toy,
)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = write_toy(tmp_path / "toy.h5")
    for split, size in SIZES.items():
        raw = raw_features(size, DIM)
        features = store.features(split)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, unit(raw), atol=2.5e-4)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=2e-7)
        np.testing.assert_allclose(store.features(split, unit=False), raw, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            store.split(split).norms(), np.linalg.norm(raw, axis=1), rtol=1e-6
        )
        np.testing.assert_array_equal(store.labels(split), labels(split))
        np.testing.assert_array_equal(store.split(split).encoded, np.arange(size))
        assert store.paths(split) == [f"{split}/{row} ü.jpg" for row in range(size)]
    views = raw_features(N_VIEWS, SIZES["train"], DIM)
    got = store.split("train").views(np.arange(SIZES["train"]))
    np.testing.assert_allclose(got, unit(views), atol=2.5e-4)
    assert (store.split("train").n_views, store.split("test").n_views) == (N_VIEWS, 0)
    assert store.classnames == CLASSNAMES
    assert (store.splits, store.text_sets, store.skipped) == (
        ("train", "test"),
        ("templates",),
        (SKIPPED,),
    )
    assert (store.dataset, store.model, store.logit_scale) == ("toy", "tiny", 50.0)
    assert (store.n_classes, store.dim, store.imported) == (3, DIM, False)
    assert store.identity == IDENTITY
    assert store.fingerprint == fingerprint(IDENTITY)
    assert store.versions == {"numpy": "2"}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [0],
        [19],
        [3, 4, 5],
        [5, 5, 1, 5],
        [19, 0, 7, 8, 6],
        list(range(20)),
        list(range(20))[::-1],
    ],
    ids=str,
)
def test_rows_come_in_the_order_asked_for_with_repeats(tmp_path: Path, rows: list[int]) -> None:
    store = write_toy(tmp_path / "toy.h5")
    every = np.arange(SIZES["train"])
    index = np.array(rows, dtype=np.int64)
    for whole in (True, False):
        np.testing.assert_array_equal(
            store.features("train", rows, unit=whole),
            store.features("train", unit=whole)[index],
        )
        np.testing.assert_array_equal(
            store.split("train").views(rows, unit=whole),
            store.split("train").views(every, unit=whole)[:, index],
        )
    np.testing.assert_array_equal(
        store.split("train").norms(rows), store.split("train").norms()[index]
    )


def test_a_few_shot_store_reads_by_the_rows_of_the_whole_split(tmp_path: Path) -> None:
    encoded = [2, 3, 9, 14, 19]
    store = write_toy(tmp_path / "toy.h5", rows=encoded, view_rows=[3, 14])
    raw = raw_features(SIZES["train"], DIM)
    views = raw_features(N_VIEWS, SIZES["train"], DIM)
    np.testing.assert_array_equal(store.split("train").encoded, encoded)
    assert len(store.labels("train")) == SIZES["train"]
    got = store.features("train", [19, 2, 9, 2])
    np.testing.assert_allclose(got, unit(raw[[19, 2, 9, 2]]), atol=2.5e-4)
    got = store.features("train", [14, 3], unit=False)
    np.testing.assert_allclose(got, raw[[14, 3]], rtol=1e-3, atol=1e-4)
    got = store.split("train").views([14, 3, 14], unit=False)
    np.testing.assert_allclose(got, views[:, [14, 3, 14]], rtol=1e-3, atol=1e-4)


def test_a_row_that_was_not_encoded_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    identity = {**IDENTITY, "support_only": {"shots": 2, "seeds": [1, 2]}}
    store = write_toy(tmp_path / "toy.h5", rows=[2, 9], view_rows=[9], identity=identity)
    with pytest.raises(
        UserError, match=r"2 of 20 train images \(seeds \[1, 2\], shots 2\), not row 4"
    ):
        store.features("train", [9, 4])
    with pytest.raises(UserError, match="fewshot extract --dataset toy --model tiny"):
        store.split("train").norms([19])
    with pytest.raises(UserError, match="not row 0"):
        store.features("train")
    with pytest.raises(UserError, match=r"views of 1 of 20 train images .* not row 2"):
        store.split("train").views([2])
    with pytest.raises(UserError, match="no augmented test views"):
        store.split("test").views([0])


@pytest.mark.parametrize(
    ("rows", "error"),
    [([20], IndexError), ([-1], IndexError), ([[1]], TypeError), ([True], TypeError)],
)
def test_rows_that_are_none_are_refused(tmp_path: Path, rows: Any, error: type[Exception]) -> None:
    store = write_toy(tmp_path / "toy.h5")
    with pytest.raises(error, match="rows must be"):
        store.features("train", rows)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_a_few_rows_of_a_large_matrix_are_read_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache.extraction.store_writer import create

    monkeypatch.setattr("cache.arrays.contents.CHECKED", 1_000_000)
    path = tmp_path / "wide.h5"
    size, dim = 4000, 512
    identity = {"dataset": {"name": "wide"}, "model": {"name": "tiny"}}
    with create(path, identity=identity, classnames=CLASSNAMES, versions={}) as writer:
        writer.split("train", labels=np.zeros(size, int), paths=["x"] * size, dim=dim)
        writer.write("train", 0, raw_features(size, dim))
    store = FeatureStore.open(path)

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    store.features("train", np.arange(0, size, 100))
    assert bytes_read() - before < path.stat().st_size / 4


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no val split, only train, test"):
        write_toy(tmp_path / "toy.h5").features("val")


def test_hdf5_is_asked_once_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_toy(tmp_path / "toy.h5", tower=True)

    def unexpected(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("opened once more")

    monkeypatch.setattr(h5py, "File", unexpected)
    train = store.split("train")
    assert len(train) == len(train.labels) == len(train.paths) == SIZES["train"]
    assert train.features([1, 2]).shape == train.views([1, 2])[0].shape == (2, DIM)
    text = store.class_text("raw-mean")
    np.testing.assert_array_equal(text.features, store.text("raw-mean"))
    assert text.sentences == [f"prompt {i}" for i in range(6)]
    np.testing.assert_array_equal(text.labels, np.arange(6) % 3)
    np.testing.assert_allclose(text.prompts, unit(raw_features(6, DIM, seed=9)), atol=1e-6)


def test_what_is_read_of_a_split_is_read_once(tmp_path: Path) -> None:
    split = write_toy(tmp_path / "toy.h5").split("test")
    assert split.labels is split.labels
    assert split.paths is split.paths


@pytest.mark.parametrize("name", ["features", "norms", "labels", "paths"])
def test_a_changed_byte_is_refused_by_whoever_reads_it(tmp_path: Path, name: str) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    with h5py.File(path) as file:
        offset = file[f"train/{name}"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"damaged: the bytes of /train/{name} are not the ones"):
        FeatureStore.open(path).split("train").features([5], unit=False)


def test_a_store_pickles(tmp_path: Path) -> None:
    store = write_toy(tmp_path / "toy.h5")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    np.testing.assert_array_equal(again.features("test"), store.features("test"))


def test_a_store_replaced_while_in_use_is_refused(tmp_path: Path) -> None:
    store = write_toy(tmp_path / "toy.h5")
    time.sleep(0.02)  # past the resolution of file times
    write_toy(tmp_path / "toy.h5")
    with pytest.raises(UserError, match="replaced while in use"):
        store.features("train")


def refused(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        FeatureStore.open(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path / "dtd" / "x.h5", "no store at .*x.h5; make it with: fewshot extract --dataset dtd"
    )
    refused(
        Path("x.h5"), "no store at x.h5; give the file of a store, such as features/dtd/tiny.h5"
    )
    refused(tmp_path, "cannot read .*: Is a directory")
    text = tmp_path / "text.h5"
    text.write_text("not a store")
    refused(text, "not an HDF5 file")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["features"] = np.zeros(3)
    refused(foreign, "fewshot did not write")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_store_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "toy.h5"
    write_toy(path)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    refused(path, "damaged or cut short")


def test_an_unfinished_newer_or_altered_store_is_refused(tmp_path: Path) -> None:
    original = tmp_path / "toy.h5"
    write_toy(original)
    for attribute, value, match in (
        ("complete", False, "never finished"),
        ("schema", 99, "has schema 99 and this version reads up to 5"),
        ("fingerprint", "0" * 64, "damaged"),
    ):
        path = Path(shutil.copy(original, tmp_path / f"{attribute}.h5"))
        with h5py.File(path, "r+") as file:
            file.attrs[attribute] = value
        refused(path, match)
    with h5py.File(original, "r+") as file:
        del file.attrs["complete"]
    refused(original, "never finished")


def test_another_identity_is_refused_key_by_key(tmp_path: Path) -> None:
    store = write_toy(tmp_path / "toy.h5")
    store.require({**IDENTITY, "views": {"count": N_VIEWS, "crop_scale": (0.5, 1.0)}})
    other = {**IDENTITY, "precision": "fp16", "text": {"templates": "b" * 64, "cupl": "c" * 64}}
    with pytest.raises(UserError) as caught:
        store.require(other)
    message = str(caught.value)
    assert "precision is 'fp32', asked for 'fp16'" in message
    assert "text.templates is aaaaaaaaaaaa, asked for bbbbbbbbbbbb" in message
    assert "text.cupl is None, asked for cccccccccccc" in message
    assert "--if-exists overwrite" in message
    assert "dataset" not in message
    assert "\n" not in message


def test_a_locked_store_is_not_called_damaged(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    code = "import sys, pathlib, cache.store as s; s.FeatureStore.open(pathlib.Path(sys.argv[1]))"
    insisting = {**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE"}
    with h5py.File(path, "a"):
        tried = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            cwd=Path(__file__).parents[1],
            env=insisting,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "toy.h5 is locked by another process" in tried.stderr
    assert "damaged" not in tried.stderr
