import hashlib
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import torch
from filelock import FileLock
from PIL import Image

from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.extraction.digests import of_images
from cache.identity import Recipe, identity_of
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import from_templates, prompt_sets
from cache.store import FeatureStore
from cache.store_check import verify
from tests.recipes import age, recipe_of


@pytest.mark.usefixtures("small_shards")
def test_features_and_text_are_those_of_the_stock_model(
    colored: Source, encoder: Encoder, random_vit: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    assert extract(colored, encoder, recipe_of(colored), store, batch_size=3)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{random_vit}")
    model.eval()
    made = FeatureStore.open(store)
    assert verify(store) == []
    with torch.no_grad():
        for split, items in colored.splits.items():
            assert made.paths(split) == [item.path for item in items]
            assert made.labels(split).tolist() == [item.label for item in items]
            images = [Image.open(colored.root / item.path).convert("RGB") for item in items]
            expected = model.encode_image(torch.stack([preprocess(i) for i in images])).numpy()
            np.testing.assert_allclose(
                made.features(split, unit=False), expected, atol=1e-3 * abs(expected).max()
            )
        tokens = open_clip.get_tokenizer(f"local-dir:{random_vit}")
        text = model.encode_text(tokens([f"a photo of a {n}." for n in colored.classnames]))
        expected = torch.nn.functional.normalize(text, dim=1).numpy()
    np.testing.assert_allclose(made.text(), expected, atol=1e-5)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("model", ["random_vit", "tiny"])
def test_text_from_before_the_projection_is_stored_with_it(
    model: str, colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    encoder = load("tiny", device="cpu") if model == "tiny" else encoder
    sets = prompt_sets([f"light_{name}" for name in colored.classnames], ["a {}", "no {}", "{}"])
    extract(colored, encoder, replace(recipe_of(colored), prompts=sets), tmp_path / "s.h5")
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
    colored: Source, random_vit: Path, tmp_path: Path
) -> None:
    encoder = load(f"local-dir:{random_vit}", device="cpu")
    matrix = encoder.model.text_projection
    del encoder.model.text_projection
    encoder.model.text_projection = torch.nn.Linear(*matrix.shape)
    extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5")
    assert verify(tmp_path / "s.h5") == []
    assert FeatureStore.open(tmp_path / "s.h5").class_text().pooled is None


@pytest.mark.usefixtures("small_shards")
def test_views_are_those_of_their_seed_content_and_number(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    recipe = recipe_of(colored, views=3, view_seed=7, crop_scale=(0.3, 0.6))
    extract(colored, encoder, recipe, store, batch_size=8)
    made = FeatureStore.open(store)
    assert made.split("train").n_views == 3
    assert made.split("test").n_views == 0
    rows = [11, 2]
    paths = [colored.splits["train"][row].path for row in rows]
    content = [hashlib.sha256((colored.root / path).read_bytes()).hexdigest() for path in paths]
    crops = [
        encoder.preprocess.view(colored.read(path), (0.3, 0.6), (7, int(digest[:32], 16), v))
        for v in range(3)
        for path, digest in zip(paths, content, strict=True)
    ]
    expected = encoder.encode_images(torch.stack(crops)).view(3, 2, -1).numpy()
    got = made.split("train").views(rows, unit=False)
    np.testing.assert_allclose(got, expected, atol=1e-3 * abs(expected).max())


@pytest.mark.usefixtures("small_shards")
def test_parts_encoded_apart_assemble_to_the_same_bytes(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    whole, apart = tmp_path / "whole.h5", tmp_path / "apart.h5"
    extract(colored, encoder, recipe_of(colored, views=2), whole)
    for i in (3, 1, 2):
        extract(colored, encoder, recipe_of(colored, views=2), apart, part=(i, 3))
        assert not apart.exists()
    extract(colored, encoder, recipe_of(colored, views=2), apart)
    assert apart.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.sqlite")), "what is not to be kept is cleared away"


@pytest.mark.usefixtures("small_shards")
def test_a_resumed_run_encodes_only_what_is_missing(
    colored: Source, encoder: Encoder, tmp_path: Path, encoded: list[str]
) -> None:
    age(colored.root)
    extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5", part=(1, 2))
    first = encoded.copy()
    extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5", part=(1, 2))
    assert encoded == first
    extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5")
    every = [item.path for items in colored.splits.values() for item in items]
    assert sorted(encoded) == sorted(every)
    assert len(first) < len(every)


def test_a_second_writer_is_turned_away(colored: Source, encoder: Encoder, tmp_path: Path) -> None:
    store = tmp_path / "s.h5"
    with (
        FileLock(tmp_path / ".s.lock"),
        pytest.raises(UserError, match="another process is writing"),
    ):
        extract(colored, encoder, recipe_of(colored), store)
    assert not store.exists()


def test_what_is_there_is_left_alone_replaced_or_an_error(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    assert extract(colored, encoder, recipe_of(colored), store)
    first = store.read_bytes()
    assert not extract(colored, encoder, recipe_of(colored), store)
    other = Recipe({"templates": from_templates(colored.classnames, ["the {}"])})
    with pytest.raises(UserError, match=r"text\.templates is .* --if-exists overwrite"):
        extract(colored, encoder, other, store)
    with pytest.raises(UserError, match="exists; --if-exists"):
        extract(colored, encoder, recipe_of(colored), store, if_exists="error")
    with pytest.raises(UserError, match="unknown --if-exists 'replace'"):
        extract(colored, encoder, recipe_of(colored), store, if_exists="replace")
    assert not extract(colored, encoder, other, store, if_exists="skip")
    assert store.read_bytes() == first
    assert extract(colored, encoder, other, store, if_exists="overwrite")
    assert store.read_bytes() != first


def test_the_identity_changes_with_everything_that_changes_a_byte(
    colored: Source, encoder: Encoder, random_resnet: Path
) -> None:
    base = recipe_of(colored)
    items = colored.splits["train"]
    turned = {**colored.splits, "train": items[::-1]}
    variants = [
        identity_of(colored, encoder, base),
        identity_of(colored, encoder, replace(base, views=1)),
        identity_of(colored, encoder, replace(base, views=1, view_seed=1)),
        identity_of(colored, encoder, replace(base, views=1, crop_scale=(0.1, 1.0))),
        identity_of(colored, encoder, replace(base, support_only={"shots": [1]})),
        identity_of(colored, encoder, replace(base, prompts={})),
        identity_of(colored, replace(encoder, precision="bf16"), base),
        identity_of(colored, load(f"local-dir:{random_resnet}", device="cpu"), base),
        identity_of(replace(colored, exif=False), encoder, base),
        identity_of(replace(colored, classnames=("a", "b", "c")), encoder, base),
        identity_of(replace(colored, splits=turned), encoder, base),
    ]
    (colored.root / items[0].path).write_bytes(b"another image")
    variants.append(identity_of(colored, encoder, base))
    assert len({str(v) for v in variants}) == len(variants)


def test_only_the_support_rows_are_encoded(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    recipe = recipe_of(
        colored, train_rows=np.array([7, 1]), views=2, support_only={"shots": [1], "seeds": [1]}
    )
    extract(colored, encoder, recipe, store)
    made = FeatureStore.open(store)
    assert len(made.labels("train")) == len(colored.splits["train"])
    assert made.features("train", [7, 1]).shape == (2, 16)
    assert made.split("train").views([7]).shape == (2, 1, 16)
    with pytest.raises(UserError, match="not row 2"):
        made.features("train", [2])
    full = tmp_path / "full.h5"
    extract(colored, encoder, recipe_of(colored), full)
    np.testing.assert_array_equal(
        made.features("train", [7, 1]), FeatureStore.open(full).features("train", [7, 1])
    )


def test_a_train_image_that_no_few_shot_set_needs_may_be_missing(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    (colored.root / colored.splits["train"][0].path).unlink()
    recipe = recipe_of(colored, train_rows=np.array([7, 1]), support_only={"shots": [1]})
    assert extract(colored, encoder, recipe, tmp_path / "s.h5")


def test_an_image_that_breaks_off_stops_the_run_or_is_left_out_and_listed(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    store = tmp_path / "s.h5"
    bad = colored.splits["train"][2].path
    file = colored.root / bad
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match=f"1 image cannot be read.*{bad}.*--skip-unreadable"):
        extract(colored, encoder, recipe_of(colored), store)
    assert not store.exists()
    extract(colored, encoder, recipe_of(colored), store, skip_unreadable=True)
    made = FeatureStore.open(store)
    assert verify(store) == []
    assert [(image.split, image.path) for image in made.skipped] == [("train", bad)]
    kept = [item for item in colored.splits["train"] if item.path != bad]
    assert made.paths("train") == [item.path for item in kept]
    assert made.labels("train").tolist() == [item.label for item in kept]
    sound = colored.splits["train"][3]
    crop = encoder.preprocess.center(colored.read(sound.path))
    expected = encoder.encode_images(crop[None]).numpy()
    np.testing.assert_allclose(
        made.features("train", [2], unit=False), expected, atol=1e-3 * abs(expected).max()
    )


@pytest.mark.usefixtures("small_shards")
def test_all_images_that_do_not_decode_are_named_at_once_and_what_is_encoded_is_kept(
    colored: Source, encoder: Encoder, tmp_path: Path, encoded: list[str]
) -> None:
    bad = {row: colored.splits["train"][row].path for row in (1, 6, 9)}
    sound = {path: (colored.root / path).read_bytes() for path in bad.values()}
    for path, content in sound.items():
        (colored.root / path).write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    store, said = tmp_path / "s.h5", list[str]()
    with pytest.raises(UserError, match=f"3 images cannot be read, the first train {bad[1]}"):
        extract(colored, encoder, recipe_of(colored), store, say=said.append)
    assert [line.split(":")[0] for line in said[1:]] == [f"  train {bad[row]}" for row in bad]
    for path, content in sound.items():  # as from a backup, with the times of then
        (colored.root / path).write_bytes(content)
        os.utime(colored.root / path, (0, 0))
    encoded.clear()
    assert extract(colored, encoder, recipe_of(colored), store)
    assert sorted(encoded) == sorted(bad.values())
    assert FeatureStore.open(store).paths("train") == [i.path for i in colored.splits["train"]]


def test_an_unreadable_support_image_is_never_skipped(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    file = colored.root / colored.splits["train"][2].path
    file.write_bytes(file.read_bytes()[:400])
    recipe = recipe_of(colored, train_rows=np.array([2, 3]), support_only={"shots": [1]})
    with pytest.raises(UserError, match="changes the few-shot sample"):
        extract(colored, encoder, recipe, tmp_path / "s.h5", skip_unreadable=True)


def test_leftovers_of_a_killed_run_are_cleared(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / ".s.h5.123.tmp").write_bytes(b"torn")
    extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5")
    assert sorted(p.name for p in tmp_path.glob("*s.*")) == [".s.lock", "s.h5"]


def test_an_image_gone_since_the_dataset_was_listed_is_named(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    path = colored.root / colored.splits["train"][3].path
    path.unlink()
    with pytest.raises(UserError, match=rf"cannot read {path}: No such file"):
        extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5")


def test_images_of_other_bytes_than_the_manifest_declares_are_told(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    said: list[str] = []
    ours = {"train": of_images(colored, "train"), "test": "0" * 64}
    declared = replace(colored, content=ours)
    extract(declared, encoder, recipe_of(colored), tmp_path / "s.h5", say=said.append)
    [told] = [line for line in said if "byte for byte" in line]
    assert "the test images" in told
    made = FeatureStore.open(tmp_path / "s.h5").versions
    assert made["train images"] == ours["train"]
    assert made["test images"] == of_images(colored, "test")


def test_a_store_records_what_its_last_bits_depend_on(
    colored: Source, encoder: Encoder, tmp_path: Path
) -> None:
    extract(colored, encoder, recipe_of(colored), tmp_path / "s.h5", batch_size=7)
    said = FeatureStore.open(tmp_path / "s.h5").versions
    assert (said["batch_size"], said["threads"]) == ("7", str(torch.get_num_threads()))
    assert said["processor"].startswith("CPU, ")
