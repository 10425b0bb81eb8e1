import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source, pooled
from cache.extract import extract
from cache.extraction import new_images, shards
from cache.extraction.prompt_features import encode_prompts
from cache.extraction.shards import CENTER, Cropping, Shard, Wanted, encode_shard
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import prompt_sets
from fewshot.automatic.encoding import Encoding, encode_labeled


@pytest.fixture
def photos(draw_photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(new_images, "ROWS", 4)
    folder = draw_photos(4)
    for file in folder.rglob("*.jpg"):
        os.utime(file, (10**9, 10**9))
    return folder


class Extraction:
    """Runs that share a bank, and what they encode beside a run that knows nothing."""

    def __init__(
        self, encoder: Encoder, home: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.encoder, self.home, self.images = encoder, home, images
        self.prompts: list[str] = []
        encode = encode_prompts

        def noted(prompts: Any, encoder: Encoder) -> Any:
            self.prompts.extend(prompts)
            return encode(prompts, encoder)

        monkeypatch.setattr("cache.extraction.prompt_features.encode_prompts", noted)

    def __call__(
        self, source: Source, templates: tuple[str, ...] = ("a {}.",), **options: Any
    ) -> tuple[list[str], list[str]]:
        """The images and the prompts that were encoded, once the bytes are those of a fresh run."""
        engine = options.pop("engine", "serial")
        recipe = replace(Recipe(prompt_sets(source.classnames, templates)), **options)
        store, fresh = self.home / "s" / "s.h5", self.home / "fresh.h5"
        self.images.clear()
        self.prompts.clear()
        bank = self.home / "bank.sqlite"
        extract(
            source, self.encoder, recipe, store, bank=bank, if_exists="overwrite", engine=engine
        )
        made = sorted(self.images), sorted(self.prompts)
        extract(source, self.encoder, recipe, fresh, if_exists="overwrite")
        assert store.read_bytes() == fresh.read_bytes()
        return made


@pytest.fixture
def run(
    encoder: Encoder, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> Extraction:
    return Extraction(encoder, tmp_path, encoded, monkeypatch)


def test_only_what_is_new_is_encoded_and_the_bytes_are_those_of_a_fresh_run(
    photos: Path, run: Extraction
) -> None:
    images, prompts = run(resolve_folder(photos))
    assert (len(images), len(prompts)) == (12, 3)
    assert run(resolve_folder(photos)) == ([], [])

    (photos / "blue" / "001.jpg").rename(photos / "red" / "moved.jpg")
    assert run(resolve_folder(photos)) == ([], [])

    (photos / "green").rename(photos / "lime")
    assert run(resolve_folder(photos)) == ([], ["a lime."])

    Image.effect_noise((40, 50), 90).convert("RGB").save(photos / "lime" / "new.jpg")
    assert run(resolve_folder(photos)) == (["lime/new.jpg"], [])

    (photos / "red" / "000.jpg").unlink()
    assert run(resolve_folder(photos)) == ([], [])

    both = ("a {}.", "no {}.")
    assert run(resolve_folder(photos), both) == ([], ["no blue.", "no lime.", "no red."])

    assert run(pooled(resolve_folder(photos)), both) == ([], [])


def test_more_views_encode_only_those(photos: Path, run: Extraction) -> None:
    source = resolve_folder(photos)
    train = sorted(item.path for item in source.splits["train"])
    run(source)
    assert run(source, views=1)[0] == train
    assert run(source, views=1) == ([], [])
    wanted: list[tuple[int, ...]] = []
    encode = shards.Cropping.pixels

    def noted(self: Cropping, *rest: Any) -> Any:
        wanted.append(rest[-1])
        return encode(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.Cropping, "pixels", noted)
        run(source, views=3)
    fresh = len(train) * 4 + sum(len(items) for items in source.splits.values()) - len(train)
    assert len(wanted) == 2 * len(train) + fresh
    assert run(source, views=3, view_seed=1)[0] == train
    (photos / train[0]).unlink()
    now_in_train = {item.path for item in resolve_folder(photos).splits["train"]} - set(train)
    assert set(run(resolve_folder(photos), views=3)[0]) == now_in_train


def test_extract_after_auto_encodes_nothing(
    photos: Path, encoder: Encoder, tmp_path: Path, encoded: list[str]
) -> None:
    from cache.datasets.preflight import check_files
    from cache.location import bank_path

    source = resolve_folder(photos)
    how = Encoding((encoder,), tmp_path / "s", 1, rehash=False, say=lambda line: None)
    encode_labeled(check_files(pooled(source)), how)
    assert len(encoded) == 12
    recipe = Recipe(prompt_sets(source.classnames, source.templates))
    extract(source, encoder, recipe, tmp_path / "s" / "x.h5", bank=bank_path(how.root))
    assert len(encoded) == 12


def test_worker_processes_get_only_what_is_new(photos: Path, run: Extraction) -> None:
    source = resolve_folder(photos)
    run(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.extraction.engines.EncoderSpec.load", None)
        patch.setattr("cache.extraction.engines.ProcessPoolExecutor", None)
        assert run(source, engine="process") == ([], [])


def test_unchanged_images_are_not_read_unless_asked(
    photos: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, said = resolve_folder(photos), list[str]()
    recipe = Recipe(prompt_sets(source.classnames, ["{}"]))
    store, bank = tmp_path / "s.h5", tmp_path / "bank.sqlite"
    extract(source, encoder, recipe, store, bank=bank)
    path = photos / "blue" / "001.jpg"
    content = path.read_bytes()
    other = photos / "red" / "000.jpg"
    path.write_bytes(other.read_bytes()[: len(content)].ljust(len(content), b"\0"))
    os.utime(path, (10**9, 10**9))  # equal in size and time
    assert not extract(source, encoder, recipe, store, bank=bank)
    assert extract(source, encoder, recipe, store, bank=bank, rehash=True, say=said.append)
    assert "not those that" in said[0]
    fresh = tmp_path / "fresh.h5"
    extract(source, encoder, recipe, fresh)
    assert store.read_bytes() == fresh.read_bytes()
    said.clear()
    extract(source, encoder, recipe, store, bank=bank, if_exists="overwrite", say=said.append)
    assert said == [
        "12 of 12 images encoded before, by size and time of modification (--rehash reads them)"
    ]


def test_a_damaged_feature_is_computed_again(photos: Path, run: Extraction, tmp_path: Path) -> None:
    run(resolve_folder(photos))
    with sqlite3.connect(tmp_path / "bank.sqlite") as database:
        database.execute("UPDATE vectors SET data = zeroblob(64) WHERE id IN (1, 5)")
        database.execute("UPDATE vectors SET data = zeroblob(64) WHERE kind = 'prompt'")
    images, prompts = run(resolve_folder(photos))
    assert (len(images), len(prompts)) == (2, 3)


def test_a_bank_taken_away_costs_time_and_nothing_else(
    photos: Path, run: Extraction, tmp_path: Path
) -> None:
    run(resolve_folder(photos))
    (tmp_path / "bank.sqlite").unlink()
    assert len(run(resolve_folder(photos))[0]) == 12


def test_an_image_of_equal_content_elsewhere_is_the_same_image(
    photos: Path, run: Extraction
) -> None:
    run(resolve_folder(photos))
    shutil.copy(photos / "red" / "000.jpg", photos / "red" / "copy.jpg")
    assert run(resolve_folder(photos)) == ([], [])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["tiny", "resnet"])
def test_a_feature_does_not_depend_on_the_images_around_it(
    model: str, precision: str, photos: Path, random_resnet: Path
) -> None:
    name = "tiny" if model == "tiny" else f"local-dir:{random_resnet}"
    encoder = load(name, device="cpu", precision=precision)
    paths = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.jpg"))
    cropping = Cropping(resolve_folder(photos), 8, (0.5, 1.0), 0)

    def features(*chosen: str) -> dict[bytes, bytes]:
        shard = Shard(0, tuple(Wanted(path, (CENTER,)) for path in chosen))
        made = encode_shard(cropping, shard, encoder)
        return {key: v.tobytes() for key, v in zip(made.keys, made.vectors, strict=True)}

    together = features(*paths)
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8, 11):
        some = features(*rng.permutation(paths)[:n].tolist())
        assert {key: together[key] for key in some} == some


def test_a_prompt_does_not_depend_on_the_prompts_around_it(encoder: Encoder) -> None:
    prompts = [f"{'very ' * (i % 9)}small {i}" for i in range(70)]

    def features(some: list[str]) -> dict[str, bytes]:
        return {
            prompt: vector.tobytes()
            for batch, vectors in encode_prompts(some, encoder)
            for prompt, vector in zip(batch, vectors, strict=True)
        }

    together = features(prompts)
    for some in (prompts[:1], prompts[8:9], prompts[60:], prompts[::-3]):
        alone = features(some)
        assert alone == {prompt: together[prompt] for prompt in some}
    stock = encoder.model.encode_text(encoder.tokenizer(prompts[:9]))
    ours = np.array([np.frombuffer(together[p], np.float32)[: encoder.dim] for p in prompts[:9]])
    torch.testing.assert_close(torch.from_numpy(ours), stock, rtol=1e-4, atol=1e-4)
