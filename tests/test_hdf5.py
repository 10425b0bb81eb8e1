"""Stores that refer outside themselves, or say more than their file can hold, are refused."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cache.errors import UserError
from cache.store import FeatureStore
from cache.store_check import inspect, verify
from tests.toy_store import write_toy

DIGEST = np.bytes_("0" * 64)


def external_link(file: Any, other: Path) -> None:
    del file["test"]
    file["test"] = h5py.ExternalLink(other, "/test")


def external_link_of_an_array(file: Any, other: Path) -> None:
    del file["test/labels"]
    file["test/labels"] = h5py.ExternalLink(other, "/test/labels")


def soft_link(file: Any, _: Path) -> None:
    del file["test"]
    file["test"] = h5py.SoftLink("/train")


def hard_link(file: Any, _: Path) -> None:
    del file["test"]
    file["test"] = file["train"]


def hard_link_of_an_array(file: Any, _: Path) -> None:
    del file["test/paths"]
    file["test/paths"] = file["train/paths"]


def circle(file: Any, _: Path) -> None:
    file["text/round"] = file["text"]


def external_storage(file: Any, other: Path) -> None:
    n = len(file["test/norms"])
    del file["test/norms"]
    file.create_dataset("test/norms", (n,), "<f4", external=[(str(other), 0, 4 * n)])
    file["test/norms"].attrs["sha256"] = DIGEST


def virtual(file: Any, other: Path) -> None:
    shape = file["test/labels"].shape
    del file["test/labels"]
    layout = h5py.VirtualLayout(shape, "<i8")
    layout[:] = h5py.VirtualSource(other, "test/labels", shape=shape)
    file.create_virtual_dataset("test/labels", layout)
    file["test/labels"].attrs["sha256"] = DIGEST


def chunks(file: Any, _: Path) -> None:
    labels = file["test/labels"][:]
    del file["test/labels"]
    file.create_dataset("test/labels", data=labels, chunks=labels.shape)
    file["test/labels"].attrs["sha256"] = DIGEST


@pytest.mark.parametrize(
    "change",
    [
        external_link,
        external_link_of_an_array,
        soft_link,
        hard_link,
        hard_link_of_an_array,
        circle,
        external_storage,
        virtual,
        chunks,
    ],
    ids=lambda change: change.__name__,
)
def test_a_store_that_refers_outside_itself_is_refused_by_every_reader(
    tmp_path: Path, change: Callable[[Any, Path], None]
) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    other = Path(shutil.copy(path, tmp_path / "other.h5"))
    with h5py.File(path, "r+") as file:
        change(file, other)
    for read in (FeatureStore.open, inspect):
        with pytest.raises(UserError, match=r"toy\.h5 refers outside itself \(.*do not trust it"):
            read(path)
    (problem,) = verify(path)
    assert "refers outside itself" in problem


def huge(file: Any, name: str) -> None:
    """An array of a petabyte that was never written."""
    del file[name]
    space = h5py.h5s.create_simple((2**50,))
    text = h5py.h5t.py_create(np.dtype("S1"))
    dataset = h5py.h5d.create(file.id, name.encode(), text, space)
    h5py.Dataset(dataset).attrs["sha256"] = DIGEST


@pytest.mark.parametrize("name", ["skipped", "classnames", "train/paths", "text/templates/prompts"])
def test_an_array_larger_than_the_file_takes_no_memory(tmp_path: Path, name: str) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    with h5py.File(path, "r+") as file:
        huge(file, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="damaged"):
        FeatureStore.open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("bit", [2, 30, 40, 62, 63])
@pytest.mark.parametrize("name", ["text/templates/labels", "train/labels"])
def test_a_flipped_bit_of_a_label_is_refused_before_anything_is_counted(
    tmp_path: Path, name: str, bit: int
) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    with h5py.File(path) as file:
        offset = file[name].id.get_offset() + 8 * 3
    content = bytearray(path.read_bytes())
    content[offset + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    for read in (FeatureStore.open, inspect):
        with pytest.raises(UserError, match=f"damaged: the bytes of /{name} are not"):
            read(path)


@pytest.mark.parametrize("value", [-1, 2.5, "0" * 64, b"\xff" * 64, np.zeros(3), [b"a", b"b"]])
@pytest.mark.parametrize(("name", "key"), [("train/labels", "sha256"), ("/", "schema"),
                                           ("/", "fingerprint"), ("/", "format")])  # fmt: skip
def test_attributes_of_another_type_are_refused(
    tmp_path: Path, name: str, key: str, value: Any
) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    with h5py.File(path, "r+") as file:
        file[name].attrs[key] = value
    with pytest.raises(UserError, match=r"damaged|did not write"):
        FeatureStore.open(path)


@pytest.mark.parametrize("name", ["train", "text/templates", "/"])
def test_attributes_that_no_store_has_are_refused(tmp_path: Path, name: str) -> None:
    path = write_toy(tmp_path / "toy.h5").path
    with h5py.File(path, "r+") as file:
        file[name].attrs["more"] = 1
    with pytest.raises(UserError, match="damaged"):
        FeatureStore.open(path)
