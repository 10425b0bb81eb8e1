"""A store in parts: the same numbers as in one file, and a part that is not the listed one."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest

from cache.arrays import parts
from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.extraction import new_images, store_assembly
from cache.extraction.store_writer import create
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from cache.store_check import inspect, verify
from cli import main
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.sampling import draw
from tests.toy_store import CLASSNAMES, DIM, labels, raw_features

SIZES = (7, 1, 5)  # images of the parts of `write_parted`
N = sum(SIZES)


@pytest.fixture
def photos(draw_photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(new_images, "ROWS", 3)
    monkeypatch.setattr(store_assembly, "PART_BYTES", 0)  # so each has three images
    return resolve_folder(draw_photos(6))


def build(source: Source, encoder: Encoder, store: Path, **options: Any) -> FeatureStore:
    recipe = Recipe(prompt_sets(source.classnames, source.templates))
    recipe = replace(recipe, views=2, pre_projection=True)
    extract(source, encoder, recipe, store, if_exists="overwrite", **options)
    return FeatureStore.open(store)


def write_parted(path: Path, sizes: tuple[int, ...] = SIZES) -> FeatureStore:
    """A train split of N images with two views, in parts of these sizes; none for one file."""
    folder = parts.parts_folder(path)
    features, views = raw_features(N, DIM), raw_features(2, N, DIM)
    listed, start = [], 0
    for number, n in enumerate(sizes):
        file, at = folder / f"train-{number}.h5", slice(start, start + n)
        shapes = {"features": (n, DIM), "views": (2, n, DIM)}
        with parts.create_part(file, "train", "a" * 64, shapes, str) as part:
            part.write("features", 0, features[at])
            part.write("views", 0, views[:, at])
        listed.append(parts.StorePart.of(parts.open_part(str(file), "a" * 64), "a" * 64))
        start += n
    identity = {"dataset": {"name": "toy"}, "model": {"name": "tiny", "logit_scale": 1.0}}
    with create(path, identity=identity, classnames=CLASSNAMES, versions={}) as writer:
        writer.split(
            "train", labels=labels("train")[:N], paths=[f"{i}.jpg" for i in range(N)], dim=DIM,
            n_views=2, parts=listed or None,
        )  # fmt: skip
        if not listed:
            writer.write("train", 0, features)
            writer.write_views("train", 0, views)
    return FeatureStore.open(path)


def test_a_store_in_parts_reads_as_one_file_to_the_last_bit(tmp_path: Path) -> None:
    whole, parted = write_parted(tmp_path / "a.h5", ()), write_parted(tmp_path / "b.h5")
    assert parted.fingerprint == whole.fingerprint
    assert len(parted.contents.files) == 1 + len(SIZES)
    one, other = whole.split("train"), parted.split("train")
    assert (other.paths, other.n_views, other.n_viewed) == (one.paths, 2, N)
    for rows in (None, [12, 0, 7, 7, 6], [8], []):
        np.testing.assert_array_equal(other.features(rows), one.features(rows))
        np.testing.assert_array_equal(other.norms(rows), one.norms(rows))
    for unit in (True, False):
        np.testing.assert_array_equal(
            other.views([12, 0, 7], unit=unit), one.views([12, 0, 7], unit=unit)
        )
    drawn = draw(parted.labels("train"), parted.classnames, shots=2, seed=1)
    np.testing.assert_array_equal(
        drawn.train, draw(whole.labels("train"), whole.classnames, shots=2, seed=1).train
    )
    assert verify(tmp_path / "b.h5") == []
    assert "b.h5 with 3 parts, " in inspect(tmp_path / "b.h5")


def test_rows_are_read_from_their_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_parted(tmp_path / "s.h5")
    monkeypatch.setattr("cache.arrays.contents.CHECKED", 0)  # a small matrix is compared as a whole
    (tmp_path / "s.parts" / "train-0.h5").unlink()
    assert store.features("train", [7, 12]).shape == (2, DIM)
    with pytest.raises(UserError, match=r"cannot read .*train-0.h5"):
        store.features("train", [6])


def test_a_long_list_of_paths_is_compared_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_parted(tmp_path / "s.h5")
    content = bytearray(store.path.read_bytes())
    content[store.contents.files[0].places["train/paths"].offset] ^= 1
    store.path.write_bytes(content)
    with pytest.raises(UserError, match="the bytes of /train/paths are not"):
        FeatureStore.open(store.path)
    monkeypatch.setattr("cache.arrays.store_format.CHECKED", 0)
    split = FeatureStore.open(store.path).split("train")
    assert split.features([3]).shape == (1, DIM)
    with pytest.raises(UserError, match="the bytes of /train/paths are not"):
        _ = split.paths


def test_a_part_that_is_not_the_listed_one_is_refused(tmp_path: Path) -> None:
    path = write_parted(tmp_path / "s.h5").path
    other = write_parted(tmp_path / "other.h5", (5, 5, 3)).path.with_suffix(".parts")
    part = tmp_path / "s.parts" / "train-1.h5"

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            FeatureStore.open(path)
        assert "\n" not in str(caught.value)
        assert "put back the part, or run the command that made the store" in str(caught.value)

    part.unlink()
    refused("train-1.h5 is missing, and .*s.h5 needs it")
    shutil.copy(other / "train-1.h5", part)
    refused("train-1.h5 has other features than those that .*s.h5 lists")
    shapes = {"features": (SIZES[1], DIM), "views": (2, SIZES[1], DIM)}
    with parts.create_part(part, "train", "a" * 64, shapes, str) as same_size:
        same_size.write("features", 0, raw_features(SIZES[1], DIM, seed=1))
        same_size.write("views", 0, raw_features(2, SIZES[1], DIM, seed=1))
    refused("train-1.h5 has other features than those that .*s.h5 lists")
    with h5py.File(part, "r+") as file:
        file.attrs["made_of"] = np.bytes_("b" * 64)
    refused("train-1.h5 is of another run, and .*s.h5 needs it")
    part.write_bytes(part.read_bytes()[:-100])
    refused("train-1.h5 is damaged or cut short")
    shutil.copy(path, part)
    refused("train-1.h5 is no finished part")


def test_verify_names_the_part_with_a_changed_byte(tmp_path: Path) -> None:
    store = write_parted(tmp_path / "s.h5")
    part = store.contents.files[3]
    content = bytearray(Path(part.address).read_bytes())
    content[part.places["train/views"].offset] ^= 1
    Path(part.address).write_bytes(content)
    assert verify(store.path) == [
        "train-2.h5/train/views: its bytes are not the ones that were written"
    ]


@pytest.mark.parametrize("file", ["../a.h5", "/etc/passwd", "a/b/c.h5", "s3://b/a.h5", "a.h5"])
def test_a_store_that_refers_outside_the_folders_beside_it_is_refused(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = parts.StorePart(file, N, "a" * 64, 1, "b" * 64)
    monkeypatch.setattr(parts.StorePart, "of", staticmethod(lambda *_: elsewhere))
    with pytest.raises(UserError, match="which does not lie in a folder beside it; do not trust"):
        write_parted(tmp_path / "s.h5", (N,))


def test_a_store_in_parts_opens_from_object_storage(tmp_path: Path) -> None:
    local = write_parted(tmp_path / "s.h5")
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path), "/stores", recursive=True)
    try:
        store = FeatureStore.open("memory://stores/s.h5")
        assert FeatureStore.open(Path("memory://stores/s.h5")) == store
        np.testing.assert_array_equal(
            store.features("train", [12, 0, 7]), local.features("train", [12, 0, 7])
        )
        np.testing.assert_array_equal(store.labels("train"), local.labels("train"))
        system.rm("/stores/s.parts/train-1.h5")
        with pytest.raises(UserError, match=r"memory://stores/s.parts/train-1.h5 is missing"):
            store.reopened()
        with pytest.raises(UserError, match=r"no store at memory://stores/none.h5"):
            FeatureStore.open("memory://stores/none.h5")
    finally:
        system.rm("/stores", recursive=True)


def test_extraction_in_parts_gives_the_features_of_one_file(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    whole = build(photos, encoder, tmp_path / "a.h5")
    assert len(whole.contents.files) == 1
    parted = build(photos, encoder, tmp_path / "b.h5", in_parts=True)
    assert len(parted.contents.files) > len(photos.splits) + 1
    assert (parted.fingerprint, parted.versions) == (whole.fingerprint, whole.versions)
    assert verify(parted.path) == []
    for split in photos.splits:
        one, other = whole.split(split), parted.split(split)
        np.testing.assert_array_equal(other.features(unit=False), one.features(unit=False))
        np.testing.assert_array_equal(other.pooled(), one.pooled())
    rows = np.arange(len(photos.splits["train"]))
    for read in ("views", "pooled_views"):
        np.testing.assert_array_equal(
            getattr(parted.split("train"), read)(rows), getattr(whole.split("train"), read)(rows)
        )
    build(photos, encoder, tmp_path / "b.h5", in_parts=False)
    assert not (tmp_path / "b.parts").exists()
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_an_adapter_answers_the_same_of_a_store_in_parts(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    build(photos, encoder, tmp_path / "a.h5")
    build(photos, encoder, tmp_path / "b.h5", in_parts=True)
    adapter = tmp_path / "c.safetensors"
    fit_and_save(FeatureStore.open(tmp_path / "b.h5"), "nearest-mean", adapter, shots=1)
    for name in "ab":
        asked = ["--store", str(tmp_path / f"{name}.h5"), "--out", str(tmp_path / f"{name}.csv")]
        assert main(["predict", str(adapter), *asked]) == 0
    answers = (tmp_path / "a.csv").read_text()
    assert answers.count("\n") == 1 + sum(map(len, photos.splits.values()))
    assert (tmp_path / "b.csv").read_text() == answers


def test_a_store_of_many_features_is_in_parts_by_itself(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_assembly, "ONE_FILE", 0)
    assert len(build(photos, encoder, tmp_path / "s.h5").contents.files) > 1


def test_a_run_stopped_among_the_parts_continues_and_leaves_finished_ones_alone(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = build(photos, encoder, tmp_path / "a" / "s.h5", in_parts=True)
    store, begin = tmp_path / "b" / "s.h5", parts.create_part
    written: list[Path] = []

    def stopped(path: Path, *rest: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return begin(path, *rest)

    monkeypatch.setattr(store_assembly, "create_part", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(photos, encoder, store, in_parts=True)
    assert not store.exists()
    assert len(list((tmp_path / "b" / "s.parts").iterdir())) == 2
    stamps = [path.stat().st_mtime_ns for path in written]
    time.sleep(0.02)
    (tmp_path / "b" / "s.parts" / "stray.h5").touch()
    monkeypatch.setattr(store_assembly, "create_part", begin)
    build(photos, encoder, store, in_parts=True)
    assert [path.stat().st_mtime_ns for path in written] == stamps
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.h5")]
    assert len(files) == len(undisturbed.contents.files)
    assert sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.h5")) == (
        sorted(files)
    )
    for file in files:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
