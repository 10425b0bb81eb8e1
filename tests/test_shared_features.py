from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cache.datasets.resolving import find
from cache.datasets.source import Source
from cache.extract import extract
from cache.extraction import engines, new_images
from cache.extraction.shards import encode_shard
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from tests.shard_files import samples, tar


@pytest.fixture
def remote() -> Iterator[Any]:
    """An object storage in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def fruit(remote: Any) -> Source:
    """Twelve images at a URL."""
    remote.pipe_file("/bucket/fruit/train-0.tar", tar(samples(range(12))))
    remote.pipe_file("/bucket/fruit/classnames.txt", b"apple\npear\n")
    return find("memory://bucket/fruit/train-0.tar")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are encoded, in order, from now on; four in a shard."""
    paths: list[str] = []

    def noted(cropping: Any, shard: Any, *arguments: Any, **options: Any) -> Any:
        paths.extend(image.path for image in shard.images)
        return encode_shard(cropping, shard, *arguments, **options)

    monkeypatch.setattr(new_images, "ROWS", 4)
    monkeypatch.setattr(engines, "encode_shard", noted)
    return paths


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load("tiny", device="cpu")


@pytest.fixture
def machine(fruit: Source, encoder: Encoder, tmp_path: Path) -> Callable[..., bytes]:
    """A function that extracts as a machine with a disk of its own; gives the store's bytes."""

    def run(name: str, **options: Any) -> bytes:
        store = tmp_path / name / "tiny.h5"
        extract(fruit, encoder, Recipe({}), store, bank=tmp_path / name / "bank", **options)
        return store.read_bytes() if store.exists() else b""

    return run


def test_machines_without_a_common_disk_make_the_store_that_one_makes(
    machine: Callable[..., bytes], encoded: list[str]
) -> None:
    share = "memory://bucket/features/"
    for i in (1, 2):
        assert machine(f"machine-{i}", share=share, part=(i, 2)) == b""
    assert len(set(encoded)) == len(encoded) == 12
    said: list[str] = []
    together = machine("third", share=share, say=said.append)
    assert len(encoded) == 12
    assert "12 images encoded by other machines, from memory://bucket/features" in said
    assert together == machine("alone")
    said.clear()
    machine("third", share=share, if_exists="overwrite", say=said.append)
    assert not any("other machines" in text for text in said)  # for it has them


def test_a_machine_that_is_lost_is_replaced_by_one_that_encodes_the_rest_of_its_share(
    machine: Callable[..., bytes], encoded: list[str], remote: Any, tmp_path: Path
) -> None:
    machine("lost", share="memory://bucket/features", part=(1, 2))
    machine("other", share="memory://bucket/features", part=(2, 2))
    first, second = remote.glob("/bucket/features/*/1-of-2/*.features")
    remote.rm(first)
    remote.pipe_file(second, remote.cat_file(second)[:-1])
    encoded.clear()
    machine("next", share="memory://bucket/features", part=(1, 2))
    assert len(encoded) == 8  # what is damaged is encoded again
    assert remote.glob("/bucket/features/*/1-of-2/*.features") == [first, second]
    said: list[str] = []
    machine("again", share="memory://bucket/features", part=(1, 2), say=said.append)
    assert len(encoded) == 8
    assert said[0].startswith("8 images encoded by other machines")  # of this share alone


def test_a_folder_is_shared_as_a_url_is_and_features_of_another_batch_are_not_taken(
    machine: Callable[..., bytes], encoded: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    machine("one", share=str(tmp_path / "share"), batch_size=4)
    machine("two", share=str(tmp_path / "share"), batch_size=8, say=said.append)
    assert len(encoded) == 24
    assert any(text.endswith("not used: batch_size is 4 there, 8 here") for text in said)


def test_an_image_at_a_url_is_read_once_to_be_encoded(
    machine: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, remote: Any
) -> None:
    reads: list[object] = []
    cat: Any = type(remote).cat_file

    def counted(self: object, *where: object, **options: object) -> object:
        reads.append(where)
        return cat(self, *where, **options)

    monkeypatch.setattr(type(remote), "cat_file", counted)
    machine("one")
    assert len(reads) == 12
