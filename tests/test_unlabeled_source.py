from pathlib import Path

import h5py
import numpy as np
import pytest

from cache.arrays.hdf5 import digest
from cache.datasets.preflight import check
from cache.datasets.unlabeled_source import find_unlabeled
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.loading import load
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from cache.store_check import inspect, verify
from fewshot.fitting import fit
from tests.shard_files import picture, samples, tar


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("apple\npear\n\n")
    return tmp_path / "names.txt"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for n in range(6):
        file = tmp_path / "photos" / ("", "day 1", "day 2")[n % 3] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(n))
    return tmp_path / "photos"


def test_all_images_of_a_folder_are_one_train_split(photos: Path, names: Path) -> None:
    source = find_unlabeled(str(photos), names)
    assert (source.dataset, source.classnames) == ("photos-unlabeled", ("apple", "pear"))
    assert {(item.path, item.label) for item in source.splits["train"]} == {
        ("0.png", -1), ("3.png", -1), ("day 1/1.png", -1), ("day 1/4.png", -1),
        ("day 2/2.png", -1), ("day 2/5.png", -1),
    }  # fmt: skip
    report = check(source)
    assert report.problems == ()
    assert report.report() == (
        "photos-unlabeled: 2 classes, 6 unlabeled images (folder, unlabeled)"
    )


def test_labels_of_shards_are_not_looked_at(tmp_path: Path, names: Path) -> None:
    members = {name: x for name, x in samples(range(4)).items() if name.endswith("png")}
    (tmp_path / "train-0.tar").write_bytes(tar(members))
    (tmp_path / "test-0.tar").write_bytes(tar(samples(range(4, 6))))
    source = find_unlabeled(str(tmp_path / "{train,test}-0.tar"), names)
    assert [item.label for item in source.splits["train"]] == [-1] * 6
    assert list(source.splits) == ["train"]


@pytest.mark.parametrize(
    ("dataset", "names", "message"),
    [
        (None, "a\nb", "--unlabeled needs --dataset"),
        ("x.csv", "a\nb", "takes images from a folder or from shards; got .*x.csv"),
        ("empty", "a\nb", "no image in .*empty"),
        ("photos", "a\n", "must have two class names at least, one per line; got 1"),
        ("photos", "\udcff", "cannot read .*names.txt .*a class name per line"),
    ],
)
def test_what_cannot_be_unlabeled_is_one_line(
    dataset: str | None, names: str, message: str, photos: Path
) -> None:
    (photos.parent / "empty").mkdir()
    file = photos.parent / "names.txt"
    file.write_bytes(names.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        find_unlabeled(dataset and str(photos.parent / dataset), file)


def test_a_store_without_labels_serves_methods_that_need_none(photos: Path, names: Path) -> None:
    source, path = find_unlabeled(str(photos), names), photos.parent / "tiny.h5"
    recipe = Recipe(prompt_sets(source.classnames, source.templates))
    assert extract(source, load("tiny", device="cpu"), recipe, path)
    store = FeatureStore.open(path)
    assert verify(path) == []
    assert "6 images, unlabeled" in inspect(path)
    assert not extract(source, load("tiny", device="cpu"), recipe, path)
    with h5py.File(path) as file:
        assert file.attrs["schema"] == 4  # which older versions refuse
    fitted = fit(store, "gda-em")
    assert fitted.n_images == 6
    with pytest.raises(UserError, match=r"have no labels; use a method that learns from unlabeled"):
        fit(store, "nearest-mean", shots=1)
    assert np.array_equal(store.split("train").features([2]), store.features("train")[[2]])


def test_a_label_among_images_without_labels_is_refused(photos: Path, names: Path) -> None:
    source, path = find_unlabeled(str(photos), names), photos.parent / "tiny.h5"
    extract(source, load("tiny", device="cpu"), Recipe({}), path)
    with h5py.File(path, "r+") as file:
        file["train/labels"][3] = 1
        file.flush()
        file["train/labels"].attrs["sha256"] = np.bytes_(digest(path, file["train/labels"]))
    with pytest.raises(UserError, match=r"/train/labels: -1..1, for images without labels"):
        FeatureStore.open(path)
