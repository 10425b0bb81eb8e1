from collections import Counter

import numpy as np
import pytest

from cache.datasets.listing import Item, split_items, stratified_split


@pytest.mark.parametrize(
    ("n", "train", "val", "test"),
    [(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 1, 1), (4, 2, 1, 1), (10, 5, 2, 3), (1000, 500, 200, 300)],
)
def test_how_many_of_a_class_each_split_gets(n: int, train: int, val: int, test: int) -> None:
    splits = stratified_split([0] * n)
    assert {split: len(rows) for split, rows in splits.items()} == {
        split: count for split, count in (("train", train), ("val", val), ("test", test)) if count
    }


def test_every_row_is_in_one_split_and_in_order() -> None:
    labels = [row % 7 for row in range(200)]
    splits = stratified_split(labels)
    assert sorted(row for rows in splits.values() for row in rows) == list(range(200))
    assert all(rows == sorted(rows) for rows in splits.values())


def test_a_class_is_split_alike_whatever_the_others_are() -> None:
    alone = stratified_split([3] * 20)
    among = stratified_split([3] * 20 + [4] * 50)
    assert {s: [r for r in rows if r < 20] for s, rows in among.items()} == alone


def test_two_classes_are_not_split_by_the_same_draws() -> None:
    splits = stratified_split([0] * 100 + [1] * 100)
    assert [r for r in splits["test"] if r < 100] != [r - 100 for r in splits["test"] if r >= 100]


def test_rows_go_to_val_then_test_then_train_by_rank_of_their_draws() -> None:
    draws = np.random.default_rng([1, 5]).random(10).tolist()
    ranked = sorted(range(10), key=lambda row: draws[row])
    splits = stratified_split([5] * 10)
    assert splits["val"] == sorted(ranked[:2])
    assert splits["test"] == sorted(ranked[2:5])
    assert splits["train"] == sorted(ranked[5:])


def test_of_no_rows_there_is_no_split() -> None:
    assert stratified_split([]) == {}
    assert split_items([]) == {}


def test_items_are_split_with_their_labels() -> None:
    items = [Item(f"{i}.png", i % 2) for i in range(20)]
    splits = split_items(items)
    assert Counter(item.label for item in splits["test"]) == {0: 3, 1: 3}
    assert sorted(i.path for part in splits.values() for i in part) == sorted(i.path for i in items)
