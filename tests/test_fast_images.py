"""Photos that torch scales, and that the library behind Pillow decodes without Pillow."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cache.datasets.resolving import resolve_folder
from cache.errors import UserError
from cache.extract import extract
from cache.extraction.engines import EncoderSpec
from cache.identity import Recipe
from cache.images import decode, turbo_jpeg
from cache.images.decoding_memory import MEMORY
from cache.images.preprocessing import Preprocess
from cache.images.turbo_jpeg import TURNS
from cache.models.loading import load
from cache.prompts import prompt_sets
from cache.store import FeatureStore

EXACT = Preprocess(32, (0.5,) * 3, (0.25,) * 3, "bicubic", "shortest")
ORIENTATION = 0x0112  # the EXIF tag


def picture(height: int, width: int) -> Image.Image:
    """Smooth colors with some noise, as photographs have."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    noisy = smooth + rng.normal(0, 6, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def bytes_of(preprocess: Preprocess, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.int64]:
    return preprocess.center_crop(image).numpy().astype(int)


SIZES = [(97, 150), (150, 97), (3, 400), (32, 32), (20, 25)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("kept", [1.0, 0.875])
def test_crops_differ_from_pillows_by_1_of_255_at_most(
    height: int, width: int, interpolation: str, mode: str, kept: float
) -> None:
    exact = replace(EXACT, interpolation=interpolation, resize_mode=mode, crop_pct=kept)
    fast = replace(exact, interpolation=f"fast-{interpolation}")
    image = picture(height, width)
    difference = abs(bytes_of(fast, image) - bytes_of(exact, image))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05
    assert np.array_equal(bytes_of(fast, np.asarray(image)), bytes_of(fast, image))


@pytest.mark.parametrize("number", range(4))
def test_views_are_the_same_boxes_and_mirrored_alike(number: int) -> None:
    image = picture(90, 120)
    fast = replace(EXACT, interpolation="fast-bicubic")
    ours, theirs = (one.view_crop(image, (0.3, 1.0), (1, 2, number)) for one in (fast, EXACT))
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 75},
        {"quality": 95, "subsampling": 0},
        {"quality": 90, "subsampling": 1, "progressive": True},
        {"quality": 90, "optimize": True, "restart_marker_rows": 1},
        {"quality": 90, "keep_rgb": True},
    ],
)
def test_a_jpeg_has_the_bits_that_pillow_decodes(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "photo.jpg"
    picture(61, 83).save(path, **options)
    with Image.open(path) as opened:
        ours = turbo_jpeg.decoded_jpeg(opened, path, exif=False)
    assert ours is not None
    np.testing.assert_array_equal(ours, np.asarray(decode.read_rgb(path, exif=False)))


@pytest.mark.parametrize("orientation", [1, *TURNS, 9])
def test_a_jpeg_is_turned_upright_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[ORIENTATION] = orientation
    picture(21, 40).save(path, exif=exif)
    for upright in (False, True):
        with decode.opened_pixels(path, exif=upright) as ours:
            theirs = np.asarray(decode.read_rgb(path, exif=upright))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_other_colors_goes_through_pillow(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.jpg"
    picture(20, 30).convert(mode).save(path)
    with decode.opened_pixels(path, exif=True) as ours:
        np.testing.assert_array_equal(ours, np.asarray(decode.read_rgb(path, exif=True)))


def test_a_truncated_jpeg_fails_with_pillows_reason(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    picture(200, 300).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    for opened in (decode.opened, decode.opened_pixels):
        with pytest.raises(OSError, match="truncated"), opened(path, exif=True):
            pass
    assert MEMORY.held == 0


def test_without_the_library_pillow_decodes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    picture(61, 83).save(path)
    with decode.opened_pixels(path, exif=True) as quick:
        monkeypatch.setattr(turbo_jpeg, "_turbo", lambda: None)
        with Image.open(path) as opened:
            assert turbo_jpeg.decoded_jpeg(opened, path, exif=True) is None
    with decode.opened_pixels(path, exif=True) as slow:
        np.testing.assert_array_equal(quick, slow)


def test_another_process_makes_the_same_crops() -> None:
    encoder = load("tiny", fast_images=True)
    assert encoder.preprocess.identity()["interpolation"] == "fast-bicubic"
    spec = EncoderSpec.of(encoder)
    assert spec.load().preprocess == encoder.preprocess
    assert not replace(spec, fast_images=False).load().preprocess.fast


def test_an_extraction_decodes_by_the_library_and_the_store_says_so(
    draw_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_folder(draw_photos(4))
    decoded: list[Image.Image] = []

    def noted(image: Image.Image, *given: Any, **options: Any) -> Any:
        decoded.append(image)
        return turbo_jpeg.decoded_jpeg(image, *given, **options)

    monkeypatch.setattr(decode, "decoded_jpeg", noted)
    recipe = Recipe(prompt_sets(source.classnames, source.templates))
    fast, exact = tmp_path / "fast.h5", tmp_path / "exact.h5"
    extract(source, load("tiny"), recipe, exact)
    assert not decoded
    extract(source, load("tiny", fast_images=True), recipe, fast)
    assert len(decoded) == sum(map(len, source.splits.values()))
    ours, theirs = FeatureStore.open(fast), FeatureStore.open(exact)
    assert ours.fingerprint != theirs.fingerprint
    difference = abs(ours.features("train", unit=False) - theirs.features("train", unit=False))
    assert 0 < difference.max() < 0.02 * abs(theirs.features("train", unit=False)).max()


def test_a_model_that_pads_its_images_cannot_have_them_fast() -> None:
    model = load("tiny").model
    cfg = {**model.visual.preprocess_cfg, "resize_mode": "longest"}
    model.visual.preprocess_cfg = cfg
    with pytest.raises(UserError, match="--fast-images cannot scale as this model asks for"):
        Preprocess.of(model, fast=True)
