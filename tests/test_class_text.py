from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from cache.errors import UserError
from tests.toy_store import CLASSNAMES, DIM, WIDTH, projection, raw_features, write_toy


def test_text_recipes_equal_their_definitions(tmp_path: Path) -> None:
    sets = {"templates": 9, "templates-raw": 6, "cupl": 7}
    store = write_toy(tmp_path / "toy.h5", text=sets)

    def by_hand(name: str, recipe: str) -> NDArray[np.float32]:
        raw = raw_features(sets[name], DIM, seed=len(name))
        rows = []
        for label in range(len(CLASSNAMES)):
            mine = [raw[p] for p in range(sets[name]) if p % len(CLASSNAMES) == label]
            if recipe == "unit-mean":
                mean = sum(vector / np.linalg.norm(vector) for vector in mine) / len(mine)
                rows.append(mean / np.linalg.norm(mean))
            else:
                rows.append(sum(mine) / len(mine))
        return np.array(rows)

    for recipe, usual in (("unit-mean", "templates"), ("raw-mean", "templates-raw")):
        assert store.text(recipe).dtype == np.float32
        np.testing.assert_allclose(store.text(recipe), by_hand(usual, recipe), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            store.text(recipe, "cupl"), by_hand("cupl", recipe), rtol=1e-5, atol=1e-6
        )


def test_the_text_before_the_projection_makes_the_raw_mean_text(tmp_path: Path) -> None:
    sets = {"templates": 9, "templates-raw": 6, "cupl": 7}
    store = write_toy(tmp_path / "toy.h5", text=sets, tower=True)
    for name in (None, "templates", "cupl"):
        text = store.class_text("unit-mean", name)
        pooled, last = text.pooled, text.projection
        assert pooled is not None
        assert last is not None
        assert (pooled.shape, last.shape) == ((3, WIDTH), (WIDTH, DIM))
        assert pooled.dtype == last.dtype == np.float32
        np.testing.assert_array_equal(last, projection())
        expected = store.text("raw-mean", name)
        np.testing.assert_allclose(pooled @ last, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="unknown prompt set 'culp'"):
        store.class_text("unit-mean", "culp")
    without = write_toy(tmp_path / "without.h5").class_text()
    assert without.pooled is None
    assert without.projection is None


def test_the_text_before_the_projection_changes_nothing_else(tmp_path: Path) -> None:
    without, store = write_toy(tmp_path / "a.h5"), write_toy(tmp_path / "b.h5", tower=True)
    assert store.fingerprint == without.fingerprint
    assert store.text_sets == without.text_sets
    assert store.splits == without.splits
    for recipe in ("unit-mean", "raw-mean"):
        np.testing.assert_array_equal(store.text(recipe), without.text(recipe))
    with h5py.File(store.path) as file:
        assert file.attrs["schema"] == 1


def test_the_usual_prompt_set_is_the_templates_else_the_only_one(tmp_path: Path) -> None:
    without_raw = write_toy(tmp_path / "a.h5", text={"templates": 3, "cupl": 6})
    np.testing.assert_array_equal(
        without_raw.text("raw-mean"), without_raw.text("raw-mean", "templates")
    )
    only = write_toy(tmp_path / "b.h5", text={"cupl": 6})
    np.testing.assert_array_equal(only.text(), only.text("unit-mean", "cupl"))
    several = write_toy(tmp_path / "c.h5", text={"cupl": 6, "waffle": 3})
    with pytest.raises(UserError, match="name one: cupl, waffle"):
        several.text()
    with pytest.raises(UserError, match="unknown prompt set 'culp'; did you mean 'cupl'"):
        several.text("unit-mean", "culp")
    with pytest.raises(UserError, match="unknown text recipe 'mean'"):
        only.text("mean")
    with pytest.raises(UserError, match="no text features"):
        write_toy(tmp_path / "d.h5", text={}).text()
