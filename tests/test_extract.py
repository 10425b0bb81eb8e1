import hashlib
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import open_clip
import pytest
import torch
from filelock import FileLock
from PIL import Image

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.extraction import engines, new_images
from cache.extraction.digests import of_images
from cache.extraction.shards import Encoded, encode_shard
from cache.identity import Recipe, identity_of
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import from_templates, prompt_sets
from cache.store import FeatureStore
from cache.store_check import verify
from tests.forked import needs_fork


@pytest.fixture
def photos(draw_photos: Callable[..., Path]) -> Source:
    return resolve_folder(draw_photos(10))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_images, "ROWS", 4)


def recipe_of(source: Source, **settings: object) -> Recipe:
    return replace(Recipe(prompt_sets(source.classnames, source.templates)), **settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_shards")
def test_features_and_text_are_those_of_the_stock_model(
    photos: Source, encoder: Encoder, random_vit: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    assert extract(photos, encoder, recipe_of(photos), store, batch_size=3)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{random_vit}")
    model.eval()
    made = FeatureStore.open(store)
    assert verify(store) == []
    with torch.no_grad():
        for split, items in photos.splits.items():
            assert made.paths(split) == [item.path for item in items]
            assert made.labels(split).tolist() == [item.label for item in items]
            images = [Image.open(photos.root / item.path).convert("RGB") for item in items]
            expected = model.encode_image(torch.stack([preprocess(i) for i in images])).numpy()
            np.testing.assert_allclose(
                made.features(split, unit=False), expected, atol=1e-3 * abs(expected).max()
            )
        tokens = open_clip.get_tokenizer(f"local-dir:{random_vit}")
        text = model.encode_text(tokens([f"a photo of a {n}." for n in photos.classnames]))
        expected = torch.nn.functional.normalize(text, dim=1).numpy()
    np.testing.assert_allclose(made.text(), expected, atol=1e-5)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("model", ["random_vit", "tiny"])
def test_text_from_before_the_projection_is_stored_with_it(
    model: str, photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    encoder = load("tiny", device="cpu") if model == "tiny" else encoder
    sets = prompt_sets([f"light_{name}" for name in photos.classnames], ["a {}", "no {}", "{}"])
    extract(photos, encoder, replace(recipe_of(photos), prompts=sets), tmp_path / "s.h5")
    assert verify(tmp_path / "s.h5") == []
    made = FeatureStore.open(tmp_path / "s.h5")
    assert made.text_sets == ("templates", "templates-raw")
    for name in (*made.text_sets, None):
        text = made.class_text("raw-mean", name)
        assert text.pooled is not None
        assert text.projection is not None
        np.testing.assert_allclose(
            text.pooled @ text.projection, text.features, rtol=1e-5, atol=1e-5
        )
    with h5py.File(made.path) as file:
        for group in file["text"].values():
            embeddings = group["embeddings"][:] * group["norms"][:][:, None]
            projected = group["pooled"][:] @ file["text_projection"][:]
            np.testing.assert_allclose(projected, embeddings, rtol=1e-5, atol=1e-5)


def test_a_model_whose_text_tower_ends_in_no_matrix_makes_a_store_without(
    photos: Source, random_vit: Path, tmp_path: Path
) -> None:
    encoder = load(f"local-dir:{random_vit}", device="cpu")
    matrix = encoder.model.text_projection
    del encoder.model.text_projection
    encoder.model.text_projection = torch.nn.Linear(*matrix.shape)
    extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5")
    assert verify(tmp_path / "s.h5") == []
    assert FeatureStore.open(tmp_path / "s.h5").class_text().pooled is None


@pytest.mark.usefixtures("small_shards")
def test_views_are_those_of_their_seed_content_and_number(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    recipe = recipe_of(photos, views=3, view_seed=7, crop_scale=(0.3, 0.6))
    extract(photos, encoder, recipe, store, batch_size=8)
    made = FeatureStore.open(store)
    assert made.split("train").n_views == 3
    assert made.split("test").n_views == 0
    rows = [11, 2]
    paths = [photos.splits["train"][row].path for row in rows]
    content = [hashlib.sha256((photos.root / path).read_bytes()).hexdigest() for path in paths]
    crops = [
        encoder.preprocess.view(photos.read(path), (0.3, 0.6), (7, int(digest[:32], 16), v))
        for v in range(3)
        for path, digest in zip(paths, content, strict=True)
    ]
    expected = encoder.encode_images(torch.stack(crops)).view(3, 2, -1).numpy()
    got = made.split("train").views(rows, unit=False)
    np.testing.assert_allclose(got, expected, atol=1e-3 * abs(expected).max())


@pytest.mark.usefixtures("small_shards")
def test_parts_encoded_apart_assemble_to_the_same_bytes(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    whole, apart = tmp_path / "whole.h5", tmp_path / "apart.h5"
    extract(photos, encoder, recipe_of(photos, views=2), whole)
    for i in (3, 1, 2):
        extract(photos, encoder, recipe_of(photos, views=2), apart, part=(i, 3))
        assert not apart.exists()
    extract(photos, encoder, recipe_of(photos, views=2), apart)
    assert apart.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.sqlite")), "what is not to be kept is cleared away"


# One that is spawned, as all are where this is not a test, takes seconds to load the libraries.
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("way", "n"), [("spawn", 1), pytest.param("fork", 2, marks=needs_fork)])
def test_worker_processes_give_the_same_bytes(
    photos: Source, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, way: str, n: int,
) -> None:  # fmt: skip
    asked: list[str] = []

    def context(usual: str) -> BaseContext:
        asked.append(usual)
        return get_context(way)

    monkeypatch.setattr(engines, "get_context", context)
    serial, parallel = tmp_path / "serial.h5", tmp_path / "parallel.h5"
    extract(photos, encoder, recipe_of(photos), serial)
    capsys.readouterr()
    extract(photos, encoder, recipe_of(photos), parallel, engine="process", processes=n)
    assert asked == ["spawn"]
    assert "images 30/30" in capsys.readouterr().err
    assert parallel.read_bytes() == serial.read_bytes()


@pytest.mark.usefixtures("small_shards")
def test_a_resumed_run_encodes_only_what_is_missing(
    photos: Source, encoder: Encoder, tmp_path: Path, encoded: list[str]
) -> None:
    age(photos.root)
    extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5", part=(1, 2))
    first = encoded.copy()
    extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5", part=(1, 2))
    assert encoded == first
    extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5")
    every = [item.path for items in photos.splits.values() for item in items]
    assert sorted(encoded) == sorted(every)
    assert len(first) < len(every)


def test_a_second_writer_is_turned_away(photos: Source, encoder: Encoder, tmp_path: Path) -> None:
    store = tmp_path / "s.h5"
    with (
        FileLock(tmp_path / ".s.lock"),
        pytest.raises(UserError, match="another process is writing"),
    ):
        extract(photos, encoder, recipe_of(photos), store)
    assert not store.exists()


def test_what_is_there_is_left_alone_replaced_or_an_error(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    assert extract(photos, encoder, recipe_of(photos), store)
    first = store.read_bytes()
    assert not extract(photos, encoder, recipe_of(photos), store)
    other = Recipe({"templates": from_templates(photos.classnames, ["the {}"])})
    with pytest.raises(UserError, match=r"text\.templates is .* --if-exists overwrite"):
        extract(photos, encoder, other, store)
    with pytest.raises(UserError, match="exists; --if-exists"):
        extract(photos, encoder, recipe_of(photos), store, if_exists="error")
    with pytest.raises(UserError, match="unknown --if-exists 'replace'"):
        extract(photos, encoder, recipe_of(photos), store, if_exists="replace")
    assert not extract(photos, encoder, other, store, if_exists="skip")
    assert store.read_bytes() == first
    assert extract(photos, encoder, other, store, if_exists="overwrite")
    assert store.read_bytes() != first


def replace_by_equal_size(photos: Source, row: int, seconds: int = 0) -> str:
    """Put other bytes of the same number in an image's place; its path."""
    path = photos.root / photos.splits["train"][row].path
    size = path.stat().st_size
    other = Image.effect_noise((50, 40), 200)
    quality = next(q for q in range(95, 1, -1) if jpeg_bytes(other, q) <= size)
    other.save(path, quality=quality)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    at = time.time_ns() + seconds * 10**9
    os.utime(path, ns=(at, at))
    return photos.splits["train"][row].path


def jpeg_bytes(image: Image.Image, quality: int) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.tell()


def age(path: Path) -> None:
    """Let what lies at a path, and in it, be a minute old."""
    for one in (path, *path.rglob("*")):
        os.utime(one, ns=(time.time_ns() - 60 * 10**9,) * 2)


def test_an_image_replaced_by_one_of_equal_size_is_noticed(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    age(photos.root)
    store, said = tmp_path / "s.h5", list[str]()
    extract(photos, encoder, recipe_of(photos), store)
    first = FeatureStore.open(store).features("train")
    assert not extract(photos, encoder, recipe_of(photos), store, say=said.append)
    age(store)
    path = replace_by_equal_size(photos, 3, seconds=-1)
    assert not extract(photos, encoder, recipe_of(photos), store, if_exists="skip")
    assert extract(photos, encoder, recipe_of(photos), store, say=said.append)
    (line,) = said
    assert line.startswith(f"1 image modified since {store} was made, the first {path}; making")
    changed = abs(FeatureStore.open(store).features("train") - first).max(axis=1) > 1e-3
    assert changed.nonzero()[0].tolist() == [3]
    assert not extract(photos, encoder, recipe_of(photos), store)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_an_image_replaced_with_any_other_time_is_noticed_by_its_content(
    photos: Source, encoder: Encoder, tmp_path: Path, seconds: int
) -> None:
    age(photos.root)
    store, said = tmp_path / "s.h5", list[str]()
    extract(photos, encoder, recipe_of(photos), store)
    replace_by_equal_size(photos, 3, seconds)
    assert extract(photos, encoder, recipe_of(photos), store, say=said.append)
    assert said[0].startswith(f"the images are not those that {store} was made of; making")


def test_a_file_that_was_only_touched_changes_nothing(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    extract(photos, encoder, recipe_of(photos), store)
    age(store)
    (photos.root / photos.splits["train"][3].path).touch()
    assert not extract(photos, encoder, recipe_of(photos), store)


@pytest.mark.usefixtures("small_shards")
def test_an_image_replaced_after_its_shard_was_encoded_is_noticed(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(photos.root)
    store = tmp_path / "s.h5"
    extract(photos, encoder, recipe_of(photos), store, part=(1, 1))
    path = replace_by_equal_size(photos, 3)
    extract(photos, encoder, recipe_of(photos), store)
    resumed = store.read_bytes()
    extract(photos, encoder, recipe_of(photos), store, if_exists="overwrite")
    assert store.read_bytes() == resumed
    encode = engines.run

    def encode_and_replace(*arguments: Any) -> None:
        encode(*arguments)
        replace_by_equal_size(photos, 3)

    monkeypatch.setattr(engines, "run", encode_and_replace)
    with pytest.raises(UserError, match=f"1 image modified while .* first {path}; run the same"):
        extract(photos, encoder, recipe_of(photos), tmp_path / "t.h5")
    assert not (tmp_path / "t.h5").exists()


def test_the_identity_changes_with_everything_that_changes_a_byte(
    photos: Source, encoder: Encoder, random_resnet: Path
) -> None:
    base = recipe_of(photos)
    items = photos.splits["train"]
    variants = [
        identity_of(photos, encoder, base),
        identity_of(photos, encoder, replace(base, views=1)),
        identity_of(photos, encoder, replace(base, views=1, view_seed=1)),
        identity_of(photos, encoder, replace(base, views=1, crop_scale=(0.1, 1.0))),
        identity_of(photos, encoder, replace(base, support_only={"shots": [1]})),
        identity_of(photos, encoder, replace(base, prompts={})),
        identity_of(photos, replace(encoder, precision="bf16"), base),
        identity_of(photos, load(f"local-dir:{random_resnet}", device="cpu"), base),
        identity_of(replace(photos, exif=False), encoder, base),
        identity_of(replace(photos, classnames=("a", "b", "c")), encoder, base),
        identity_of(replace(photos, splits={**photos.splits, "train": items[::-1]}), encoder, base),
    ]
    (photos.root / items[0].path).write_bytes(b"another image")
    variants.append(identity_of(photos, encoder, base))
    assert len({str(v) for v in variants}) == len(variants)


def test_only_the_support_rows_are_encoded(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    recipe = recipe_of(
        photos, train_rows=np.array([7, 1]), views=2, support_only={"shots": [1], "seeds": [1]}
    )
    extract(photos, encoder, recipe, store)
    made = FeatureStore.open(store)
    assert len(made.labels("train")) == len(photos.splits["train"])
    assert made.features("train", [7, 1]).shape == (2, 16)
    assert made.split("train").views([7]).shape == (2, 1, 16)
    with pytest.raises(UserError, match="not row 2"):
        made.features("train", [2])
    full = tmp_path / "full.h5"
    extract(photos, encoder, recipe_of(photos), full)
    np.testing.assert_array_equal(
        made.features("train", [7, 1]), FeatureStore.open(full).features("train", [7, 1])
    )


def test_a_train_image_that_no_few_shot_set_needs_may_be_missing(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    (photos.root / photos.splits["train"][0].path).unlink()
    recipe = recipe_of(photos, train_rows=np.array([7, 1]), support_only={"shots": [1]})
    assert extract(photos, encoder, recipe, tmp_path / "s.h5")


def test_an_image_that_breaks_off_stops_the_run_or_is_left_out_and_listed(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    bad = photos.splits["train"][2].path
    file = photos.root / bad
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match=f"1 image cannot be read.*{bad}.*--skip-unreadable"):
        extract(photos, encoder, recipe_of(photos), store)
    assert not store.exists()
    extract(photos, encoder, recipe_of(photos), store, skip_unreadable=True)
    made = FeatureStore.open(store)
    assert verify(store) == []
    assert [(image.split, image.path) for image in made.skipped] == [("train", bad)]
    kept = [item for item in photos.splits["train"] if item.path != bad]
    assert made.paths("train") == [item.path for item in kept]
    assert made.labels("train").tolist() == [item.label for item in kept]
    sound = photos.splits["train"][3]
    crop = encoder.preprocess.center(photos.read(sound.path))
    expected = encoder.encode_images(crop[None]).numpy()
    np.testing.assert_allclose(
        made.features("train", [2], unit=False), expected, atol=1e-3 * abs(expected).max()
    )


@pytest.mark.usefixtures("small_shards")
def test_all_images_that_do_not_decode_are_named_at_once_and_what_is_encoded_is_kept(
    photos: Source, encoder: Encoder, tmp_path: Path, encoded: list[str]
) -> None:
    bad = {row: photos.splits["train"][row].path for row in (1, 6, 9)}
    sound = {path: (photos.root / path).read_bytes() for path in bad.values()}
    for path, content in sound.items():
        (photos.root / path).write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    store, said = tmp_path / "s.h5", list[str]()
    with pytest.raises(UserError, match=f"3 images cannot be read, the first train {bad[1]}"):
        extract(photos, encoder, recipe_of(photos), store, say=said.append)
    assert [line.split(":")[0] for line in said[1:]] == [f"  train {bad[row]}" for row in bad]
    for path, content in sound.items():  # as from a backup, with the times of then
        (photos.root / path).write_bytes(content)
        os.utime(photos.root / path, (0, 0))
    encoded.clear()
    assert extract(photos, encoder, recipe_of(photos), store)
    assert sorted(encoded) == sorted(bad.values())
    assert FeatureStore.open(store).paths("train") == [i.path for i in photos.splits["train"]]


def test_an_unreadable_support_image_is_never_skipped(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    file = photos.root / photos.splits["train"][2].path
    file.write_bytes(file.read_bytes()[:400])
    recipe = recipe_of(photos, train_rows=np.array([2, 3]), support_only={"shots": [1]})
    with pytest.raises(UserError, match="changes the few-shot sample"):
        extract(photos, encoder, recipe, tmp_path / "s.h5", skip_unreadable=True)


def test_leftovers_of_a_killed_run_are_cleared(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / ".s.h5.123.tmp").write_bytes(b"torn")
    extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5")
    assert sorted(p.name for p in tmp_path.glob("*s.*")) == [".s.lock", "s.h5"]


def test_an_unknown_engine_is_refused(photos: Source, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown engine 'rya'; did you mean 'ray'"):
        extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5", engine="rya")


def test_a_shard_ends_where_its_images_have_enough_bytes(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(cropping: Any, shard: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(shard.images))
        return encode_shard(cropping, shard, *rest, **options)

    monkeypatch.setattr(engines, "encode_shard", noted)
    for name in ("whole", "small"):
        extract(photos, encoder, recipe_of(photos), tmp_path / f"{name}.h5")
        monkeypatch.setattr(new_images, "BYTES", 2 * 1300)  # each photo has some 1,300
    assert sizes[0] == 30
    assert set(sizes[1:]) <= {1, 2, 3}
    assert (tmp_path / "small.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_images_of_one_shard_start_no_process_and_have_the_bytes_of_one(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial, alone = tmp_path / "serial.h5", tmp_path / "alone.h5"
    before = torch.get_num_threads()
    at_work: list[int] = []

    def noted(*arguments: Any, **options: Any) -> Encoded:
        at_work.append(torch.get_num_threads())
        return encode_shard(*arguments, **options)

    monkeypatch.setattr(engines, "encode_shard", noted)
    monkeypatch.setattr(engines, "ProcessPoolExecutor", None)
    torch.set_num_threads(2)
    try:
        extract(photos, encoder, recipe_of(photos), alone, engine="process", processes=2)
        assert at_work == [1]
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        extract(photos, encoder, recipe_of(photos), serial)
    finally:
        torch.set_num_threads(before)
    assert alone.read_bytes() == serial.read_bytes()


@pytest.mark.usefixtures("small_shards")
def test_ray_that_does_not_start_is_said_in_one_line(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(**options: object) -> None:
        raise Exception("The current node timed out during startup. This\ncould happen")

    ray = SimpleNamespace(is_initialized=lambda: False, init=late)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(
        UserError, match=r"\ARay does not start here \(The current node timed .*ray start --head"
    ) as caught:
        extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5", engine="ray")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.usefixtures("small_shards")
def test_a_ray_cluster_that_does_not_answer_is_said_at_once(
    photos: Source, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # where nobody listens
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
        with pytest.raises(
            UserError, match=rf"no Ray answers at RAY_ADDRESS={address} \(Conn.*ref"
        ):
            extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5", engine="ray")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_actors_give_the_same_bytes(photos: Source, encoder: Encoder, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    serial, actors = tmp_path / "serial.h5", tmp_path / "actors.h5"
    extract(photos, encoder, recipe_of(photos), serial)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        extract(photos, encoder, recipe_of(photos), actors, engine="ray", processes=2)
        file = photos.root / photos.splits["train"][2].path
        file.write_bytes(file.read_bytes()[:400])
        with pytest.raises(UserError, match=r"\A1 image cannot be read, .*--skip-unreadable\Z"):
            extract(photos, encoder, recipe_of(photos), tmp_path / "b.h5", engine="ray")
    finally:
        ray.shutdown()
    assert actors.read_bytes() == serial.read_bytes()


def test_an_image_gone_since_the_dataset_was_listed_is_named(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    path = photos.root / photos.splits["train"][3].path
    path.unlink()
    with pytest.raises(UserError, match=rf"cannot read {path}: No such file"):
        extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5")


def test_images_of_other_bytes_than_the_manifest_declares_are_told(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    said: list[str] = []
    ours = {"train": of_images(photos, "train"), "test": "0" * 64}
    declared = replace(photos, content=ours)
    extract(declared, encoder, recipe_of(photos), tmp_path / "s.h5", say=said.append)
    [told] = [line for line in said if "byte for byte" in line]
    assert "the test images" in told
    made = FeatureStore.open(tmp_path / "s.h5").versions
    assert made["train images"] == ours["train"]
    assert made["test images"] == of_images(photos, "test")


def test_a_store_records_what_its_last_bits_depend_on(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    extract(photos, encoder, recipe_of(photos), tmp_path / "s.h5", batch_size=7)
    said = FeatureStore.open(tmp_path / "s.h5").versions
    assert (said["batch_size"], said["threads"]) == ("7", str(torch.get_num_threads()))
    assert said["processor"].startswith("CPU, ")
