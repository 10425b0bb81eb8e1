from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import normalize, to_tensor

from cache.errors import UserError
from cache.images.preprocessing import Preprocess, crop_box

CLIP = Preprocess(
    size=224,
    mean=open_clip.OPENAI_DATASET_MEAN,
    std=open_clip.OPENAI_DATASET_STD,
    interpolation="bicubic",
    resize_mode="shortest",
)


def photo(width: int = 90, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_preprocessing_equals_the_published_pixels(shared: Path) -> None:
    expected = np.load(shared / "golden" / "expected_preprocessed_image.npy")[0]
    image = Image.open(shared / "golden" / "franz-kafka.jpg").convert("RGB")
    np.testing.assert_allclose(CLIP.center(image).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pixels_have_the_bits_of_open_clips_own_transform(mode: str) -> None:
    preprocess = replace(CLIP, resize_mode=mode)
    image = photo()
    cfg = {key: value for key, value in asdict(preprocess).items() if key != "crop_pct"}
    theirs = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    assert torch.equal(preprocess.center(image), theirs(image))
    crop = preprocess.view_crop(image, (0.5, 1.0), (0, 0, 0))
    assert crop.dtype == torch.uint8
    expected = normalize(to_tensor(crop.permute(1, 2, 0).numpy()), list(CLIP.mean), list(CLIP.std))
    assert torch.equal(preprocess.view(image, (0.5, 1.0), (0, 0, 0)), expected)
    assert torch.equal(preprocess.standardize(torch.stack([crop, crop]))[1], expected)


def test_shorter_crops_the_middle_and_squash_keeps_all_of_it() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    tiny = Preprocess(10, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest")
    squash = Preprocess(10, (0.0,) * 3, (1.0,) * 3, "bicubic", "squash")
    assert tiny.center(wide).min() > 0.9
    assert squash.center(wide)[:, :, 0].max() < 0.1


def test_an_unknown_resizing_style_is_refused() -> None:
    model = open_clip.CLIP(
        8, {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}, {"layers": 1}
    )
    with pytest.raises(UserError, match="unknown resize 'stretch'"):
        Preprocess.of(model, "stretch")


def test_a_view_is_a_function_of_its_key_alone() -> None:
    image, scale = photo(), (0.5, 1.0)
    first = CLIP.view(image, scale, (1, 2, 3))
    CLIP.view(image, scale, (9, 9, 9))
    torch.testing.assert_close(CLIP.view(image, scale, (1, 2, 3)), first, rtol=0, atol=0)
    for other in [(2, 2, 3), (1, 3, 3), (1, 2, 4)]:
        assert not torch.equal(CLIP.view(image, scale, other), first)


def test_half_of_the_views_are_flipped() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))).convert("RGB")
    rising = [
        bool(v[0, 0, -1] > v[0, 0, 0])
        for v in (CLIP.view(ramp, (0.9, 1.0), (0, 0, k)) for k in range(200))
    ]
    assert 70 < sum(rising) < 130


def test_a_whole_square_crop_unflipped_is_the_image_resized() -> None:
    plain = Preprocess(32, (0.0,) * 3, (1.0,) * 3, "bicubic", "squash")
    image = photo(48, 48)
    views = [plain.view(image, (1.0, 1.0), (0, 0, k)) for k in range(60)]
    whole = plain.center(image)
    assert any(torch.allclose(v, whole, atol=1e-6) for v in views)
    assert any(torch.allclose(v, whole.flip(2), atol=1e-6) for v in views)


@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0)])
def test_crops_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(120, 200, scale, rng) for _ in range(3000)], dtype=float)
    torch.manual_seed(0)
    blank = torch.empty(3, 120, 200)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(3000)],
        dtype=float,
    )
    error = np.sqrt(ours.var(0) / 3000 + theirs.var(0) / 3000)
    assert (abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 120).all()
    assert (ours[:, 1] + ours[:, 3] <= 200).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(1, 100, (0, 50, 1, 1)), (100, 1, (50, 0, 1, 1))]
)
def test_an_image_no_box_fits_gets_the_largest_centered_one(
    height: int, width: int, expected: tuple[int, int, int, int]
) -> None:
    top, left, h, w = crop_box(height, width, (1.0, 1.0), np.random.default_rng(0))
    assert (h, w) == expected[2:]
    assert abs(top - expected[0]) <= 1
    assert abs(left - expected[1]) <= 1
