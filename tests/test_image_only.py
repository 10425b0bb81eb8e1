from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.models.loading import load
from cache.store import FeatureStore
from cli import main
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe

NAMES = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet")


def saved(name: str, folder: Path) -> tuple[str, Any]:
    """The name of a model whose random weights lie in a file, and timm's own."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return f"timm:{name}@{folder / name}.pt", model


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_timms_head_would_see(name: str, tmp_path: Path) -> None:
    model, stock = saved(name, tmp_path)
    encoder = load(model, device="cpu")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (190, 240, 3), dtype=np.uint8))
    config = timm.data.resolve_model_data_config(stock)  # type: ignore[attr-defined, no-untyped-call]
    pixels = timm.data.create_transform(**config, is_training=False)(image)  # type: ignore[attr-defined]
    torch.testing.assert_close(encoder.preprocess.center(image), pixels, rtol=0, atol=0)
    with torch.no_grad():
        expected = stock.forward_head(stock.forward_features(pixels[None]), pre_logits=True)
    found = encoder.encode_images(pixels[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert encoder.dim == found.shape[1]
    assert not encoder.reads_text


def test_the_share_of_the_crop_is_part_of_the_identity_and_one_is_not(tmp_path: Path) -> None:
    encoder = load(saved("test_vit", tmp_path)[0], device="cpu")
    assert encoder.preprocess.identity()["crop_pct"] == 0.95
    assert "crop_pct" not in load("tiny", device="cpu").preprocess.identity()
    assert encoder.identity["arch"] == "test_vit"
    assert encoder.identity["logit_scale"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_smal_patch14_dinov2.lvd142m", "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        ("timm:vit_small_patch14_dinov2.lvd", "unknown model of timm"),
        ("timm:nonsense@weights.pt", "unknown model of timm 'nonsense'"),
    ],
)
def test_a_name_that_timm_lacks_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_of_another_tower_are_refused(tmp_path: Path) -> None:
    saved("test_vit", tmp_path)
    message = r"no weights of timm:test_resnet: conv1.0.weight is not there in the file"
    with pytest.raises(UserError, match=message):
        load(f"timm:test_resnet@{tmp_path / 'test_vit.pt'}", device="cpu")


def test_whoever_asks_for_text_is_told_that_there_is_none(tmp_path: Path) -> None:
    encoder = load(saved("test_vit", tmp_path)[0], device="cpu")
    with pytest.raises(UserError, match="encodes images alone and reads no text"):
        encoder.encode_text(["a dog"])
    for name in ("coop", "cocoop", "prograd"):
        with pytest.raises(UserError, match="prompts can be learned with a text tower, and this"):
            TRAINED[name]().attach(Clip.of(encoder), ["cat", "dog"], ["a {}."])
    with pytest.raises(UserError, match=r"encodes images alone, so there is no .*head=trained"):
        TRAINED["ln-tune"]().attach(Clip.of(encoder), ["cat", "dog"], ["a {}."])
    with pytest.raises(UserError, match="changes a text tower; use towers=image"):
        CLIPLoRA(towers="both").attach(Clip.of(encoder), ["cat", "dog"], ["a {}."])


def test_a_trained_head_starts_as_the_mean_of_each_class(tmp_path: Path) -> None:
    encoder = load(saved("test_vit", tmp_path)[0], device="cpu")
    learner = LiveLinearProbe().attach(Clip.of(encoder), ["cat", "dog"], ["a {}."])
    images = torch.randn(5, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, 1, 1, 0])
    assert learner.calibrate is not None
    learner.calibrate(torch.split(images, 2), labels)
    unit = normalize(encoder.encode_images(images), dim=1)
    for label, own in enumerate(learner.text()):
        expected = normalize(unit[labels == label].mean(dim=0), dim=0)
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_photos_are_learned_from_images_alone(
    draw_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model, _ = saved("test_vit", tmp_path)
    photos, named = str(draw_photos()), ["--model", model]
    assert main(["extract", "--dataset", photos, *named]) == 0
    path = Path(capsys.readouterr().out.strip())
    store = FeatureStore.open(path)
    assert store.text_sets == ()
    assert (store.dim, store.model) == (64, model)
    assert main(["fit", "gda", "--store", str(path), "--shots", "2", "--seeds", "1"]) == 0
    assert main(["fit", "zero-shot", "--store", str(path)]) == 2
    assert "zero-shot needs text features and there are none" in capsys.readouterr().err
    assert main(["extract", "--dataset", photos, *named, "--template", "a {}"]) == 2
    assert "encodes images alone; leave the prompts' options out" in capsys.readouterr().err
    methods = ["--methods", "nearest-mean,gda"]
    assert main(["auto", photos, *named, "--out", "out", *methods]) == 0
    adapter = "out/adapter.safetensors"
    assert main(["predict", adapter, f"{photos}/red"]) == 0
    assert main(["export", adapter, "--to", "open_clip", "--out", "folder"]) == 2
    assert "encodes images alone; export it with --to onnx" in capsys.readouterr().err


def test_stored_features_have_unit_norm(draw_photos: Callable[..., Path], tmp_path: Path) -> None:
    model, _ = saved("test_convnext", tmp_path)
    encoder, image = load(model, device="cpu"), draw_photos(1) / "red" / "000.jpg"
    pixels = encoder.preprocess.center(Image.open(image))
    expected = normalize(encoder.encode_images(pixels[None]), dim=1)
    where = ["--store", str(tmp_path / "stores"), "--all-train"]
    assert main(["extract", "--dataset", str(image.parents[1]), "--model", model, *where]) == 0
    store = FeatureStore.open(next((tmp_path / "stores").glob("*/*.h5")))
    found = torch.from_numpy(store.features("train"))
    row = next(i for i, path in enumerate(store.paths("train")) if path.startswith("red"))
    torch.testing.assert_close(found[row], expected[0], rtol=0, atol=1e-3)
