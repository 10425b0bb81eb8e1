from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from cache.arrays.hdf5 import digest
from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.store import FeatureStore
from cache.store_check import inspect, verify

PLAIN = Recipe({}, views=2)
ASKED = replace(PLAIN, pre_projection=True)
ARRAYS = {"pooled", "pooled_norms", "pooled_views", "pooled_view_norms"}


@pytest.fixture(scope="module")
def encoder(random_vit: Path) -> Encoder:
    """The random ViT with a last layer norm that does something, one of whose scales is 0."""
    encoder = load(f"local-dir:{random_vit}", device="cpu")
    norm = encoder.model.visual.ln_post
    drawn = torch.Generator().manual_seed(0)
    norm.weight.copy_(torch.randn(norm.weight.shape, generator=drawn))
    norm.weight[0] = 0
    norm.bias.copy_(torch.randn(norm.bias.shape, generator=drawn))
    return encoder


@pytest.fixture
def photos(draw_photos: Callable[..., Path]) -> Source:
    return resolve_folder(draw_photos(4))


def made(photos: Source, encoder: Encoder, path: Path, recipe: Recipe = ASKED) -> FeatureStore:
    extract(photos, encoder, recipe, path, bank=path.with_name("bank.sqlite"))
    return FeatureStore.open(path)


def test_pooled_images_are_what_the_last_layer_norm_has_before_its_scale_and_shift(
    photos: Source, encoder: Encoder, random_vit: Path, tmp_path: Path
) -> None:
    store = made(photos, encoder, tmp_path / "s.h5")
    split, tower = store.split("train"), store.image_tower
    assert tower is not None
    *_, preprocess = open_clip.create_model_and_transforms(f"local-dir:{random_vit}")
    images = [Image.open(photos.root / path).convert("RGB") for path in split.paths]
    seen: list[torch.Tensor] = []
    visual = encoder.model.visual
    hook = visual.ln_post.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        features = visual(torch.stack([preprocess(image) for image in images])).numpy()
    hook.remove()
    class_token = seen[0][:, 0]
    expected = torch.nn.functional.layer_norm(class_token, class_token.shape[1:]).numpy()
    pooled = split.pooled()
    np.testing.assert_allclose(pooled[:, 1:], expected[:, 1:], atol=5e-3)
    assert not pooled[:, 0].any()  # of scale 0, where anything leads to the same feature
    before = tower.scale * expected + tower.shift
    np.testing.assert_allclose(tower.before_projection(pooled), before, atol=1e-2)
    np.testing.assert_allclose(tower.features(pooled), features, atol=2e-3)
    few = split.pooled([2, 0])
    np.testing.assert_array_equal(few, pooled[[2, 0]])
    views = tower.features(split.pooled_views([1, 2]))
    np.testing.assert_allclose(views, split.views([1, 2], unit=False), atol=2e-3)


def test_features_are_the_same_to_the_byte_with_what_is_before_them(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("plain.h5", "asked.h5", "again.h5")]
    plain, asked, again = (
        made(photos, encoder, path, recipe)
        for path, recipe in zip(paths, (PLAIN, ASKED, PLAIN), strict=True)
    )
    assert paths[0].read_bytes() == paths[2].read_bytes()
    assert plain.image_tower is again.image_tower is None
    for name in ("features", "norms", "views", "view_norms"):
        kept = [store.contents.array(f"train/{name}").tobytes() for store in (plain, asked)]
        assert kept[0] == kept[1]
    assert {n.rpartition("/")[2] for n in asked.contents.places} >= ARRAYS
    assert plain.fingerprint != asked.fingerprint
    with pytest.raises(UserError, match=r"pre_projection is None, asked for True"):
        made(photos, encoder, paths[0])
    with pytest.raises(UserError, match=r"before the projection; run .* --pre-projection"):
        plain.split("train").pooled()


def test_pooled_images_that_lead_elsewhere_and_arrays_that_are_missing_are_found(
    photos: Source, encoder: Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "s.h5"
    made(photos, encoder, path)
    assert verify(path) == []
    assert "wide before the projection" in inspect(path)
    whole = path.read_bytes()
    for name in ARRAYS:
        with h5py.File(path, "r+") as file:
            del file[f"train/{name}"]
        assert verify(path)[0].count(f"/train/{name} is missing") == 1
        path.write_bytes(whole)
    with h5py.File(path, "r+") as file:  # as a faulty writer might have written it
        for pooled in ("pooled", "pooled_views"):
            dataset = file[f"train/{pooled}"]
            dataset[:] = -dataset[:]
            file.flush()
            dataset.attrs["sha256"] = np.bytes_(digest(path, dataset))
    assert verify(path) == [
        "/train/pooled: 6 vectors do not lead to the features",
        "/train/pooled_views: 12 vectors do not lead to the views",
    ]


def test_a_tower_without_a_projection_is_refused_before_anything_is_encoded(
    photos: Source, random_resnet: Path, tmp_path: Path, encoded: list[str]
) -> None:
    resnet = load(f"local-dir:{random_resnet}", device="cpu")
    with pytest.raises(UserError, match=r"no projection .*; leave --pre-projection out") as caught:
        made(photos, resnet, tmp_path / "s.h5")
    assert "\n" not in str(caught.value)
    assert encoded == []
