import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.errors import UserError
from cache.extraction.store_writer import create
from cache.store import FeatureStore
from fewshot import Sample, draw, read_sample, write_sample

NAMES = ["cat", "dog"]
LABELS = [0, 1, 0, 1, 0, 1]
PATHS = [f"{NAMES[label]}/{row}.jpg" for row, label in enumerate(LABELS)]


def store(
    path: Path, *, dataset: str = "pets", order: Sequence[int] = range(6), val: bool = True
) -> FeatureStore:
    identity = {"dataset": {"name": dataset}, "model": {"name": "none"}}
    with create(path, identity=identity, classnames=NAMES, versions={}) as writer:
        for split in ("train", "val") if val else ("train",):
            labels, paths = [LABELS[k] for k in order], [PATHS[k] for k in order]
            writer.split(split, labels=labels, paths=paths, dim=2)
            writer.write(split, 0, np.ones((6, 2)))
    return FeatureStore.open(path)


@pytest.fixture
def pets(tmp_path: Path) -> FeatureStore:
    return store(tmp_path / "pets.h5")


@pytest.fixture
def sample() -> Sample:
    return draw(LABELS, NAMES, shots=2, seed=3, val_labels=LABELS)


@pytest.fixture
def file(tmp_path: Path, sample: Sample, pets: FeatureStore) -> Path:
    path = tmp_path / "sample.json"
    write_sample(path, sample, pets)
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sample_comes_back_as_it_went(file: Path, sample: Sample, pets: FeatureStore) -> None:
    again = read_sample(file, pets)
    assert (again.shots, again.seed) == (2, 3)
    np.testing.assert_array_equal(again.train, sample.train)
    assert sample.val is not None
    assert again.val is not None
    np.testing.assert_array_equal(again.val, sample.val)


def test_a_sample_without_val_comes_back_without(tmp_path: Path) -> None:
    pets = store(tmp_path / "pets.h5", val=False)
    write_sample(tmp_path / "sample.json", draw(LABELS, NAMES, shots=1, seed=1), pets)
    assert read_sample(tmp_path / "sample.json", pets).val is None


def test_images_are_found_by_path_where_another_store_lists_them_otherwise(
    tmp_path: Path, file: Path, sample: Sample
) -> None:
    backwards = store(tmp_path / "backwards.h5", order=range(5, -1, -1))
    again = read_sample(file, backwards)
    np.testing.assert_array_equal(again.train, 5 - sample.train)


def test_a_sample_with_val_does_not_fit_a_store_without(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match="has no val split"):
        read_sample(file, store(tmp_path / "other.h5", val=False))


def listed(folder: Path, text: str, name: str = "train_meta.list.num_shot_1.seed_2") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_published_list_is_a_sample_whose_repeated_images_count_once(
    tmp_path: Path, pets: FeatureStore
) -> None:
    lines = "cat/2.jpg 0\ncat/2.jpg 0\ndog/1.jpg 1\ndog/1.jpg 1\n"  # as NOAH's one pet per class
    found = read_sample(listed(tmp_path, lines), pets)
    assert (found.shots, found.seed, found.val) == (1, 2, None)
    assert found.train.tolist() == [2, 1]


def test_a_published_list_finds_images_that_the_store_has_below_train(tmp_path: Path) -> None:
    identity = {"dataset": {"name": "imagenet"}, "model": {"name": "none"}}
    with create(tmp_path / "i.h5", identity=identity, classnames=NAMES, versions={}) as writer:
        writer.split("train", labels=[0, 1], paths=["train/a/x y.jpg", "train/b/1.jpg"], dim=2)
        writer.write("train", 0, np.ones((2, 2)))
    images = FeatureStore.open(tmp_path / "i.h5")
    assert read_sample(listed(tmp_path, "a/x y.jpg 0\nb/1.jpg 1"), images).train.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog/1.jpg 0\ncat/0.jpg 1\n", r"'dog/1.jpg' the label 0, which the store has as 1, dog;"),
        ("cat/0.jpg 0\ncat/0.jpg 1\n", r"line 2: 'cat/0.jpg' has two labels"),
        ("cat/0.jpg\n", r"line 1: expected a sample in JSON, or a path and a label in each line"),
        ("\n", r"lists no image"),
        ("cat/0.jpg 0\ncat/2.jpg 0\ndog/1.jpg 1\n", r"2 train .* needed; 'dog' \(class 1\) has 1"),
        ("cat/7.jpg 0\ndog/1.jpg 1\n", r"1 of 2 images .* such as 'cat/7.jpg'"),
    ],
)
def test_a_published_list_that_does_not_fit_is_refused(
    tmp_path: Path, pets: FeatureStore, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_sample(listed(tmp_path, text), pets)


def test_an_image_that_the_split_lacks_is_named(file: Path, pets: FeatureStore) -> None:
    edit(file, train=["cat/none.jpg", "cat/0.jpg", "dog/1.jpg", "dog/3.jpg"])
    with pytest.raises(UserError, match=r"1 of 4 images .*'cat/none.jpg'"):
        read_sample(file, pets)


def test_an_image_listed_twice_is_refused(file: Path, pets: FeatureStore) -> None:
    edit(file, train=["cat/0.jpg", "cat/0.jpg", "dog/1.jpg", "dog/3.jpg"])
    with pytest.raises(UserError, match=r"lists 'cat/0.jpg' twice in train"):
        read_sample(file, pets)


def test_a_class_with_more_or_fewer_images_than_shots_is_refused(
    file: Path, pets: FeatureStore
) -> None:
    edit(file, train=["cat/0.jpg", "cat/2.jpg", "cat/4.jpg", "dog/1.jpg"])
    with pytest.raises(UserError, match=r"2 train .*'cat' \(class 0\) has 3, 'dog' .* has 1"):
        read_sample(file, pets)


def test_val_images_are_checked_like_train_images(file: Path, pets: FeatureStore) -> None:
    edit(file, val=["cat/0.jpg"])
    with pytest.raises(UserError, match=r"2 val .*'cat' \(class 0\) has 1"):
        read_sample(file, pets)


def test_a_sample_of_another_dataset_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match="is a sample of pets, not of dtd"):
        read_sample(file, store(tmp_path / "dtd.h5", dataset="dtd"))


def test_a_missing_file_is_named(tmp_path: Path, pets: FeatureStore) -> None:
    with pytest.raises(UserError, match=r"cannot read the sample .*none\.json: No such file"):
        read_sample(tmp_path / "none.json", pets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "expected an object, got"),
        ('{"dataset": "pets"}', "shots: expected a value, got nothing"),
        (
            '{"dataset": "pets", "shots": "2", "seed": 1, "train": [], "val": null}',
            "shots: expected a valid integer, got '2'",
        ),
        (
            '{"dataset": "pets", "shots": 2, "seed": 1, "train": [3], "val": null}',
            r"train\.0: expected a valid string, got 3",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(
    tmp_path: Path, pets: FeatureStore, text: str, message: str
) -> None:
    path = tmp_path / "sample.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_sample(path, pets)
