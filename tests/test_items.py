import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from cache.datasets.items import Item, Items, chosen_items, labels_of
from cache.datasets.listing import split_items
from cache.identity import digest, digest_each

ROWS = [Item(f"a shard-{n // 700}.tar/{n:05d} é\udcff.jpg", n % 7) for n in range(1500)]
COLUMNS = Items.of((item.path for item in ROWS), [item.label for item in ROWS])


def test_items_in_columns_are_those_that_were_put_in() -> None:
    assert list(COLUMNS) == ROWS
    assert [COLUMNS[row] for row in (0, 1499, 511, 512, 3, -1)] == [
        ROWS[row] for row in (0, 1499, 511, 512, 3, -1)
    ]
    assert tuple(ROWS) == COLUMNS
    assert tuple(ROWS[1:]) != COLUMNS
    assert pickle.loads(pickle.dumps(COLUMNS)) == COLUMNS
    with pytest.raises(IndexError):
        COLUMNS[1500]
    assert len(Items.of([], [])) == 0
    assert list(Items.joined([])) == []


def test_items_in_columns_are_joined_chosen_and_relabeled() -> None:
    parts = [COLUMNS[:700], COLUMNS[700:701], COLUMNS[701:]]
    assert Items.joined(parts) == COLUMNS
    assert Items.joined(parts)[1200] == ROWS[1200]
    rows = [1400, 3, 3, 600]
    for items in (COLUMNS, ROWS):
        chosen: Sequence[Item] = chosen_items(items, rows)
        assert list(chosen) == [ROWS[row] for row in rows]
        assert labels_of(chosen).tolist() == [ROWS[row].label for row in rows]
    moved = COLUMNS.relabeled(np.arange(1500, dtype=np.int32))
    assert moved[900] == Item(ROWS[900].path, 900)


def test_items_in_columns_are_split_like_others() -> None:
    assert split_items(COLUMNS) == split_items(ROWS)


def test_a_streamed_digest_is_that_of_the_whole_list() -> None:
    for n in (0, 1, 4096, 9000):
        rows = [["train", f"{i}/é.jpg", i] for i in range(n)]
        assert digest_each(iter(rows)) == digest(rows)


def test_paths_take_a_tenth_in_columns() -> None:
    stored = sum(map(len, pickle.loads(pickle.dumps(COLUMNS))._blocks))
    assert stored < sum(len(item.path) for item in ROWS) / 5
