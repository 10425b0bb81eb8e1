import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cache.errors import UserError
from fewshot.sampling import base_new, draw, restrict, support_rows

SPLIT_FILES = {
    "caltech101": "Caltech101",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "oxford_flowers": "OxfordFlowers",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "ucf101": "UCF101",
}
NAMES = ["cat", "dog", "newt"]
MIXED = [2, 0, 0, 1, 2, 1, 0, 2, 1, 1, 0, 2, 2]  # 2 appears first, then 0, then 1


@pytest.mark.parametrize(("dataset", "file"), SPLIT_FILES.items())
def test_every_published_sample_is_reproduced_row_for_row(
    shared: Path, dataset: str, file: str
) -> None:
    split = json.loads((shared / "splits" / f"split_zhou_{file}.json").read_text())
    labels = {name: [label for _, label, _ in split[name]] for name in ("train", "val")}
    classnames = [str(k) for k in range(max(labels["train"]) + 1)]
    compared = 0
    with tarfile.open(shared / "splits" / "few_shot_indices.tar.gz") as archive:
        for member in archive:
            name = re.fullmatch(rf"indices/{dataset}/shot_(\d+)-seed_(\d+)\.json", member.name)
            stream = archive.extractfile(member) if name else None
            if name is None or stream is None:
                continue
            published = json.load(stream)
            sample = draw(
                labels["train"],
                classnames,
                shots=int(name[1]),
                seed=int(name[2]),
                val_labels=labels["val"],
            )
            assert sample.train.tolist() == published["train"]["indices"]
            assert sample.val is not None
            assert sample.val.tolist() == published["val"]["indices"]
            compared += 1
    assert compared == 15


def test_one_stream_draws_classes_in_order_of_appearance_and_val_after_train() -> None:
    random.seed(7)
    expected = {}
    for split in ("train", "val"):
        expected[split] = [
            row
            for label in (2, 0, 1)
            for row in random.sample([r for r, one in enumerate(MIXED) if one == label], 3)
        ]
    sample = draw(MIXED, NAMES, shots=3, seed=7, val_labels=MIXED)
    assert sample.train.tolist() == expected["train"]
    assert sample.val is not None
    assert sample.val.tolist() == expected["val"]


def test_train_rows_do_not_depend_on_whether_val_is_drawn() -> None:
    with_val = draw(MIXED, NAMES, shots=2, seed=1, val_labels=MIXED)
    np.testing.assert_array_equal(with_val.train, draw(MIXED, NAMES, shots=2, seed=1).train)


def test_val_has_never_more_than_four_of_a_class() -> None:
    labels = np.repeat(np.arange(3), 9)
    sample = draw(labels, NAMES, shots=8, seed=1, val_labels=labels)
    assert sample.val is not None
    assert np.bincount(labels[sample.train]).tolist() == [8, 8, 8]
    assert np.bincount(labels[sample.val]).tolist() == [4, 4, 4]


def test_seeds_differ_and_repeat() -> None:
    labels = np.repeat(np.arange(3), 20)
    first, again, other = (draw(labels, NAMES, shots=4, seed=s).train for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_with_too_few_images_is_named_with_its_count_and_the_remedy() -> None:
    with pytest.raises(UserError, match=r"5 train .*'cat' \(class 0\) has 4.*use at most 4 shots"):
        draw(MIXED, NAMES, shots=5, seed=1)


def test_a_class_without_any_image_is_named() -> None:
    with pytest.raises(UserError, match=r"'newt' \(class 2\) has 0; check the train split"):
        draw([0, 1, 0, 1], NAMES, shots=1, seed=1)


def test_a_val_split_with_too_few_images_of_a_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"3 val images.*'dog' \(class 1\) has 2"):
        draw(MIXED, NAMES, shots=3, seed=1, val_labels=[0, 0, 0, 1, 1, 2, 2, 2])


def test_only_some_of_many_short_classes_are_named() -> None:
    names = [f"c{k}" for k in range(10)]
    with pytest.raises(UserError, match=r"'c2' \(class 2\) has 1, and 7 classes more"):
        draw(range(10), names, shots=2, seed=1)


@pytest.mark.parametrize("shots", [0, -1])
def test_less_than_one_shot_is_refused(shots: int) -> None:
    with pytest.raises(UserError, match="shots must be 1 or more"):
        draw(MIXED, NAMES, shots=shots, seed=1)


@pytest.mark.parametrize(("n_classes", "n_base"), [(2, 1), (47, 24), (100, 50)])
def test_base_classes_are_the_first_half_and_the_middle_one(n_classes: int, n_base: int) -> None:
    base, new = base_new(n_classes)
    assert len(base) == n_base
    assert [*base, *new] == list(range(n_classes))


def test_one_class_has_no_halves() -> None:
    with pytest.raises(UserError, match="two classes or more; got 1"):
        base_new(1)


def test_a_half_is_relabeled_from_zero() -> None:
    _, new = base_new(3)
    rows, labels = restrict(MIXED, new)
    assert rows.tolist() == [0, 4, 7, 11, 12]
    assert labels.tolist() == [0, 0, 0, 0, 0]
    rows, labels = restrict(MIXED, range(2))
    assert rows.tolist() == [1, 2, 3, 5, 6, 8, 9, 10]
    assert labels.tolist() == [0, 0, 1, 1, 0, 1, 1, 0]
    rows, labels = restrict(MIXED, range(1, 3))
    assert labels.tolist() == [one - 1 for one in MIXED if one > 0]
    assert all(MIXED[row] > 0 for row in rows)


def test_val_first_is_the_same_stream_the_other_way_round() -> None:
    names, labels, val = ["a", "b"], [0, 1] * 6, [0, 1] * 5
    rng = random.Random(3)
    expected_val = [2 * i + k for k in (0, 1) for i in rng.sample(range(5), 2)]
    expected_train = [2 * i + k for k in (0, 1) for i in rng.sample(range(6), 2)]
    sample = draw(labels, names, shots=2, seed=3, val_labels=val, val_first=True)
    assert sample.val is not None
    assert sample.val.tolist() == expected_val
    assert sample.train.tolist() == expected_train
    usual = draw(labels, names, shots=2, seed=3, val_labels=val)
    assert usual.train.tolist() != sample.train.tolist()


def test_without_a_val_split_its_images_are_drawn_along_with_the_few_shots() -> None:
    names, labels = ["a", "b"], [0, 1] * 30
    for shots, together in ((2, 4), (16, 20)):
        rng = random.Random(3)
        expected = [2 * i + k for k in (0, 1) for i in rng.sample(range(30), together)[:shots]]
        sample = draw(labels, names, shots=shots, seed=3, val_first=True)
        assert sample.train.tolist() == expected
        assert sample.train.tolist() != draw(labels, names, shots=shots, seed=3).train.tolist()
    with pytest.raises(UserError, match="no val split: 34 in all; a class has 30; use fewer shots"):
        draw(labels, names, shots=30, seed=3, val_first=True)


def test_support_rows_are_those_of_any_draw() -> None:
    labels, names = [0, 1] * 10, ["a", "b"]
    rows = support_rows(labels, names, shots=(1, 2), seeds=(1, 7))
    drawn = [draw(labels, names, shots=k, seed=seed).train for k in (1, 2) for seed in (1, 7)]
    assert rows.tolist() == sorted({row for one in drawn for row in one.tolist()})
