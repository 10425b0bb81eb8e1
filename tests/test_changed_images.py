import io
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.extraction import engines
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from tests.recipes import age, recipe_of


def replace_by_equal_size(colored: Source, row: int, seconds: int = 0) -> str:
    """Put other bytes of the same number in an image's place; its path."""
    path = colored.root / colored.splits["train"][row].path
    size = path.stat().st_size
    other = Image.effect_noise((50, 40), 200)
    quality = next(q for q in range(95, 1, -1) if jpeg_bytes(other, q) <= size)
    other.save(path, quality=quality)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    at = time.time_ns() + seconds * 10**9
    os.utime(path, ns=(at, at))
    return colored.splits["train"][row].path


def jpeg_bytes(image: Image.Image, quality: int) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.tell()


def test_an_image_replaced_by_one_of_equal_size_is_noticed(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    age(colored.root)
    store, said = tmp_path / "s.h5", list[str]()
    extract(colored, encoder, recipe_of(colored), store)
    first = FeatureStore.open(store).features("train")
    assert not extract(colored, encoder, recipe_of(colored), store, say=said.append)
    age(store)
    path = replace_by_equal_size(colored, 3, seconds=-1)
    assert not extract(colored, encoder, recipe_of(colored), store, if_exists="skip")
    assert extract(colored, encoder, recipe_of(colored), store, say=said.append)
    (line,) = said
    assert line.startswith(f"1 image modified since {store} was made, the first {path}; making")
    changed = abs(FeatureStore.open(store).features("train") - first).max(axis=1) > 1e-3
    assert changed.nonzero()[0].tolist() == [3]
    assert not extract(colored, encoder, recipe_of(colored), store)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_an_image_replaced_with_any_other_time_is_noticed_by_its_content(
    colored: Source, encoder: Encoder, tmp_path: Path, seconds: int
) -> None:
    age(colored.root)
    store, said = tmp_path / "s.h5", list[str]()
    extract(colored, encoder, recipe_of(colored), store)
    replace_by_equal_size(colored, 3, seconds)
    assert extract(colored, encoder, recipe_of(colored), store, say=said.append)
    assert said[0].startswith(f"the images are not those that {store} was made of; making")


def test_a_file_that_was_only_touched_changes_nothing(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    extract(colored, encoder, recipe_of(colored), store)
    age(store)
    (colored.root / colored.splits["train"][3].path).touch()
    assert not extract(colored, encoder, recipe_of(colored), store)


@pytest.mark.usefixtures("small_shards")
def test_an_image_replaced_after_its_shard_was_encoded_is_noticed(
    colored: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(colored.root)
    store = tmp_path / "s.h5"
    extract(colored, encoder, recipe_of(colored), store, part=(1, 1))
    path = replace_by_equal_size(colored, 3)
    extract(colored, encoder, recipe_of(colored), store)
    resumed = store.read_bytes()
    extract(colored, encoder, recipe_of(colored), store, if_exists="overwrite")
    assert store.read_bytes() == resumed
    encode = engines.run

    def encode_and_replace(*arguments: Any) -> None:
        encode(*arguments)
        replace_by_equal_size(colored, 3)

    monkeypatch.setattr(engines, "run", encode_and_replace)
    with pytest.raises(UserError, match=f"1 image modified while .* first {path}; run the same"):
        extract(colored, encoder, recipe_of(colored), tmp_path / "t.h5")
    assert not (tmp_path / "t.h5").exists()
