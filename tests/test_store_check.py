from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from cache.arrays.hdf5 import datasets, digest
from cache.store import FeatureStore
from cache.store_check import inspect, verify
from tests.toy_store import IDENTITY, write_toy, write_toy_file

FEW = {**IDENTITY, "support_only": {"shots": 1, "seeds": [1]}}
NAMES = [
    "classnames",
    "identity",
    "skipped",
    "versions",
    *(f"test/{name}" for name in ("features", "labels", "norms", "paths")),
    *(f"train/{name}" for name in ("features", "labels", "norms", "paths", "rows")),
    *(f"train/{name}" for name in ("view_norms", "view_rows", "views")),
    *(f"text/templates/{name}" for name in ("embeddings", "labels", "norms", "pooled", "prompts")),
    "text_projection",
]


def few_shot(path: Path, *, tower: bool = False) -> Path:
    write_toy(path, rows=[3, 4, 9], identity=FEW, tower=tower)
    return path


def test_a_sound_store_has_no_problems(tmp_path: Path) -> None:
    write_toy(tmp_path / "whole.h5")
    assert verify(tmp_path / "whole.h5") == []
    assert verify(few_shot(tmp_path / "few.h5")) == []
    assert verify(few_shot(tmp_path / "tower.h5", tower=True)) == []


def test_every_dataset_is_covered_below(tmp_path: Path) -> None:
    with h5py.File(few_shot(tmp_path / "toy.h5", tower=True)) as file:
        assert {dataset.name for dataset in datasets(file)} == {f"/{name}" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_one_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    path = few_shot(tmp_path / "toy.h5", tower=True)
    with h5py.File(path) as file:
        dataset = file[name]
        offset = dataset.id.get_offset() + dataset.nbytes // 2
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    (problem,) = verify(path)
    assert name in problem
    assert "not the ones that were written" in problem


def test_any_changed_byte_at_all_is_found(tmp_path: Path) -> None:
    path = few_shot(tmp_path / "toy.h5")
    content = path.read_bytes()
    for offset in range(0, len(content), 97):
        changed = bytearray(content)
        changed[offset] ^= 0x80
        path.write_bytes(changed)
        assert verify(path), f"byte {offset}"


def alter(path: Path, name: str, change: Callable[[NDArray[Any]], Any]) -> None:
    """Replace what a dataset holds, and its digest, as a faulty writer might have written it."""
    with h5py.File(path, "r+") as file:
        old = file[name][...]
        new = change(old).astype(old.dtype)
        del file[name]
        file[name] = new
        file.flush()
        file[name].attrs["sha256"] = np.bytes_(digest(path, file[name]))


@pytest.mark.parametrize(
    ("name", "index", "value", "problem"),
    [
        ("train/features", (1, 2), np.nan, "1 vectors are not of unit norm"),
        ("train/features", 0, 0, "1 vectors are not of unit norm"),
        ("train/views", (3, 1), 0.1, "1 vectors are not of unit norm"),
        ("train/norms", 1, np.inf, "1 norms are not finite and above 0"),
        ("train/view_norms", (0, 1), 0, "1 norms are not finite and above 0"),
        ("train/labels", 0, 3, "0..3, for 3 class names"),
        ("train/rows", 0, 4, "not ascending within 0..19"),
        ("train/view_rows", 2, 20, "not ascending within 0..19"),
        ("text/templates/labels", 0, -1, "-1..2, for 3 class names"),
        ("text/templates/embeddings", 0, 1, "1 vectors are not of unit norm"),
        ("text/templates/norms", 0, -1, "1 norms are not finite and above 0"),
    ],
)
def test_values_that_cannot_be_are_found(
    tmp_path: Path, name: str, index: Any, value: float, problem: str
) -> None:
    def change(values: NDArray[Any]) -> NDArray[Any]:
        values[index] = value
        return values

    path = few_shot(tmp_path / "toy.h5")
    alter(path, name, change)
    (found,) = verify(path)
    assert f"/{name}: {problem}" in found


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("text/templates/pooled", lambda pooled: pooled * (1 + np.eye(6, 1) / 20), "1"),
        ("text/templates/pooled", lambda pooled: pooled * np.nan, "6"),
        ("text_projection", lambda matrix: -matrix, "6"),
    ],
)
def test_text_that_the_projection_does_not_take_to_the_embeddings_is_found(
    tmp_path: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]], problem: str
) -> None:
    path = few_shot(tmp_path / "toy.h5", tower=True)
    alter(path, name, change)
    assert verify(path) == [
        f"/text/templates/pooled: {problem} vectors are not projected to the embeddings"
    ]


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("text/templates/pooled", lambda pooled: pooled[1:], "(5, 20), should be (6, 20)"),
        ("text_projection", lambda matrix: matrix[1:], "(6, 20), should be (6, 19)"),
        ("text_projection", lambda matrix: matrix[:, 1:], "(20, 15), should be (20, 16)"),
        ("text_projection", lambda matrix: matrix[0], "(16,), should be ('W', 16)"),
    ],
)
def test_a_projection_that_does_not_fit_the_text_before_it_is_found(
    tmp_path: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]], problem: str
) -> None:
    path = few_shot(tmp_path / "toy.h5", tower=True)
    alter(path, name, change)
    (found,) = verify(path)
    assert problem in found


@pytest.mark.parametrize(
    "name",
    ["text_projection", "text/templates/pooled", "train/labels", "train/view_norms", "versions"],
)
def test_an_array_that_is_missing_is_found(tmp_path: Path, name: str) -> None:
    path = few_shot(tmp_path / "toy.h5", tower=True)
    with h5py.File(path, "r+") as file:
        del file[name]
    (problem,) = verify(path)
    assert f"/{name} is missing" in problem


@pytest.mark.parametrize("name", ["train/more", "more", "train/labels2/x", "other/labels"])
def test_an_array_too_many_is_found(tmp_path: Path, name: str) -> None:
    path = few_shot(tmp_path / "toy.h5")
    with h5py.File(path, "r+") as file:
        file[name] = np.zeros(3, "<f4")
        file[name].attrs["sha256"] = np.bytes_("0" * 64)
    (problem,) = verify(path)
    assert f"/{name} is no part of a store" in problem


def test_norms_that_do_not_fit_are_all_that_is_found(tmp_path: Path) -> None:
    path = few_shot(tmp_path / "toy.h5", tower=True)
    alter(path, "text/templates/norms", lambda norms: norms[1:])
    (problem,) = verify(path)
    assert ": /text/templates/norms: shape (5,), should be (6,);" in problem


def test_classes_without_a_prompt_are_found(tmp_path: Path) -> None:
    path = few_shot(tmp_path / "toy.h5")
    alter(path, "text/templates/labels", np.ones_like)
    (problem,) = verify(path)
    assert "/text/templates: 2 classes have no prompt, the first is 0" in problem


@pytest.mark.parametrize(
    "name",
    ["train/paths", "train/norms", "train/features", "text/templates/prompts", "train/view_norms"],
)
def test_lengths_that_do_not_fit_are_found(tmp_path: Path, name: str) -> None:
    path = few_shot(tmp_path / "toy.h5")
    alter(path, name, lambda values: values[:-1])
    (problem,) = verify(path)
    assert f"/{name}: shape" in problem


@pytest.mark.parametrize(
    ("name", "narrow"), [("train/views", "train/views"), ("train/features", "test/features")]
)
def test_widths_that_do_not_fit_are_found(tmp_path: Path, name: str, narrow: str) -> None:
    path = few_shot(tmp_path / "toy.h5")
    alter(path, name, lambda values: values[..., :-1])
    assert any(f"/{narrow}: shape" in problem for problem in verify(path))


@pytest.mark.parametrize(
    ("section", "value", "problem"),
    [
        ("model", {"name": "m", "logit_scale": 1, "dim": 8}, "model.dim 8; the file has 16"),
        ("dataset", {"name": "d", "sizes": {"train": 20}}, "'test': 11"),
        ("text", {"cupl": "a"}, "text ['cupl']; the file has ['templates']"),
        ("views", None, "views.count 0; the file has 4"),
    ],
)
def test_contents_that_the_identity_does_not_mean_are_found(
    tmp_path: Path, section: str, value: Any, problem: str
) -> None:
    path = tmp_path / "toy.h5"
    write_toy_file(path, identity={**IDENTITY, section: value})
    (found,) = verify(path)
    assert "the identity says" in found
    assert problem in found


def test_rows_left_out_in_silence_are_found(tmp_path: Path) -> None:
    path = tmp_path / "toy.h5"
    write_toy_file(path, rows=[3, 4, 9], identity=IDENTITY)
    (problem,) = verify(path)
    assert "/train: not all images are encoded, and the identity does not say so" in problem


def test_what_is_no_store_is_one_problem(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path / "toy.h5")
    assert problem.startswith("no store at")


def test_a_store_is_described(tmp_path: Path) -> None:
    lines = inspect(few_shot(tmp_path / "toy.h5")).splitlines()
    described = {line[:14].strip(): line[16:] for line in lines}
    assert described["dataset"].startswith("toy, 3 classes")
    assert described["train"] == "20 images, 6 to 7 per class, 3 of them encoded, 4 views of 3"
    assert described["test"] == "11 images, 3 to 4 per class"
    assert described["text templates"] == "6 prompts, 2 per class"
    tower = inspect(few_shot(tmp_path / "tower.h5", tower=True))
    assert "6 prompts, 2 per class, 20 wide before the projection" in tower
    assert described["support only"] == "seeds [1], shots 1"
    assert described["model"] == "dim 16, logit_scale 50.0, name tiny"
    assert described["skipped"] == "1 image: val/a.jpg: the file is empty"
    assert described["fingerprint"] == FeatureStore.open(tmp_path / "toy.h5").fingerprint
