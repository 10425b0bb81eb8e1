"""Readers of foreign bytes against many damaged inputs: one line, bounded time, no wrong answer.

The usual run tries 200 inputs of each kind; FUZZ=10000 tries as many as it says.
"""

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import UserError
from cache.importing.import_store import import_file
from cache.store import FeatureStore
from cache.store_check import inspect, verify
from tests.toy_store import write_toy

COUNT = int(os.environ.get("FUZZ", "200"))
SECONDS = 10  # for one input
ARRAYS: dict[str, Any] = {
    "train_features": np.random.default_rng(0).normal(size=(12, 4)).astype("f4"),
    "train_labels": np.arange(12) % 3,
    "text_features": np.random.default_rng(1).normal(size=(3, 4)).astype("f4"),
}
pytestmark = pytest.mark.fuzz


def changed(rng: random.Random, original: bytes) -> bytes:
    """The bytes with a few of them flipped, replaced, cut out, put in or copied elsewhere."""
    content = bytearray(original)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(content))
        match rng.randrange(5):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.randrange(256)
            case 2:
                del content[at : at + rng.randrange(1, 64)]
            case 3:
                content[at:at] = rng.randbytes(rng.randrange(1, 16))
            case _:
                source = rng.randrange(len(content))
                content[at : at + 8] = content[source : source + 8]
        content = content or bytearray(b"x")
    return bytes(content)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **ARRAYS)
    return file.getvalue()


def npz_uncompressed() -> bytes:
    file = io.BytesIO()
    np.savez(file, **ARRAYS)
    return file.getvalue()


def pt() -> bytes:
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, file)
    return file.getvalue()


def tries(original: bytes, path: Path) -> Iterator[int]:
    """Write one changed input after another; yield its seed, and measure what its user takes."""
    for seed in range(COUNT):
        path.write_bytes(changed(random.Random(seed), original))
        before = time.process_time()
        yield seed
        assert time.process_time() - before < SECONDS, seed


def one_line(error: UserError) -> None:
    assert "\n" not in str(error)


def assert_found(path: Path) -> None:
    assert verify(path)


@pytest.mark.parametrize("make", [npz, npz_uncompressed, pt], ids=lambda make: make.__name__)
def test_an_import_of_damaged_arrays_is_refused_or_of_the_same_arrays(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    suffix = make.__name__.partition("_")[0]
    sound = tmp_path / f"sound.{suffix}"
    sound.write_bytes(make())
    expected = FeatureStore.open(import_file(sound, "sound", "tiny", tmp_path))
    path = tmp_path / f"x.{suffix}"
    refused = 0
    for seed in tries(make(), path):
        try:
            store = import_file(path, "d", "tiny", tmp_path, if_exists="overwrite")
        except UserError as error:
            one_line(error)
            refused += 1
        else:  # what changed is no part of any array, or an array or its name is gone
            made = FeatureStore.open(store)
            assert np.array_equal(made.labels("train"), expected.labels("train")), seed
            assert np.array_equal(made.features("train"), expected.features("train")), seed
            assert not made.text_sets or np.array_equal(made.text(), expected.text()), seed
    assert refused > COUNT / 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_store_is_refused_or_answers_the_same(tmp_path: Path) -> None:
    sound = write_toy(tmp_path / "sound.h5", tower=True)
    path = tmp_path / "toy.h5"
    refused = 0
    for seed in tries(sound.path.read_bytes(), path):
        try:
            store = FeatureStore.open(path)
            same = (
                store.identity == sound.identity
                and store.classnames == sound.classnames
                and all(
                    np.array_equal(store.labels(split), sound.labels(split))
                    and np.array_equal(store.features(split, [0, 3]), sound.features(split, [0, 3]))
                    for split in sound.splits
                )
                and np.array_equal(store.text(), sound.text())
            )
            inspect(path)
        except UserError as error:
            one_line(error)
            assert_found(path)
            refused += 1
        else:
            assert same, seed
    assert refused > COUNT / 2
