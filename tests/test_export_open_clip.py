import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.images.decode import read_rgb
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.export.exporting import export
from fewshot.adapters.export.folding import Head, require_towers
from fewshot.adapters.export.open_clip_folder import check, model_config
from fewshot.adapters.opened_adapter import attached, with_encoder
from fewshot.endtoend import text_tower
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS
from tests.toy_adapters import NAMES, TEMPLATES, fitted_adapter, trained_adapter

SENTENCES = [TEMPLATES[0].format(name.replace("_", " ")) for name in NAMES]
SETTINGS = {
    "krona": {"factor": "8"}, "kadaptation": {"factor": "8"}, "dp-bitfit": {"towers": "image"},
}  # fmt: skip
ALL_MATRICES = {"matrices": "q,k,v,o,fc1,fc2"}
FOLDED = [
    "clip-lora", "ln-tune", "2sfs", "bitfit", "dp-bitfit", "difffit", "full-fine-tuning",
    "full-delta", "krona", "kadaptation", "fact", "efft", "ssf", "repadapter", "live-ueo",
]  # fmt: skip
TOWERS_AS_THEY_WERE = ["coop", "kgcoop", "prograd", "live-linear-probe"]


@pytest.fixture(scope="module")
def vit(random_vit: Path) -> Encoder:
    return load(f"local-dir:{random_vit}", device="cpu")


def pixels(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_is_the_learner(encoder: Encoder, adapter: Adapter, folder: Path) -> None:
    """open_clip's towers and the matrix compute what the learner does, nothing merged."""
    export(adapter, "open_clip", folder)
    stock: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(SENTENCES)
    learner, clip = attached(adapter, Clip.of(encoder))
    images = (learner.images or clip.model.encode_image)(pixels())
    text = text_tower.encode(clip.model, clip.tokens(SENTENCES))
    torch.testing.assert_close(stock.encode_image(pixels()), images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stock.encode_text(tokens), text, rtol=1e-4, atol=1e-4)
    head = load_file(folder / "classifier.safetensors")
    logits = stock.encode_image(pixels(), normalize=True) @ head["weight"].T
    torch.testing.assert_close(logits, learner.logits(images), rtol=1e-4, atol=1e-3)
    assert float(head["temperature"]) == pytest.approx(0.8)


@pytest.mark.parametrize("name", [*FOLDED, *TOWERS_AS_THEY_WERE])
def test_what_folds_into_a_vit_is_the_learner_in_open_clip(
    vit: Encoder, tmp_path: Path, name: str
) -> None:
    settings = dict(SETTINGS.get(name, {}))
    if name in FOLDED and "factor" not in settings:
        settings.setdefault("towers", "both")
    adapter = trained_adapter(vit, name, **settings)
    assert_is_the_learner(vit, adapter, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("holds the changed towers" in card) == (name in FOLDED)
    assert ("holds the model's towers as they were" in card) == (name in TOWERS_AS_THEY_WERE)


@pytest.mark.parametrize("name", ["clip-lora", "fact"])
def test_every_matrix_of_a_block_folds(vit: Encoder, tmp_path: Path, name: str) -> None:
    assert_is_the_learner(vit, trained_adapter(vit, name, **ALL_MATRICES), tmp_path / "out")


def test_trained_class_texts_are_in_the_matrix(vit: Encoder, tmp_path: Path) -> None:
    assert_is_the_learner(vit, trained_adapter(vit, "bitfit", head="trained"), tmp_path / "out")


@pytest.mark.parametrize("name", ["ssf", "ln-tune", "clip-lora"])
def test_what_folds_into_a_resnet_is_the_learner_in_open_clip(
    resnet: Encoder, tmp_path: Path, name: str
) -> None:
    assert_is_the_learner(resnet, trained_adapter(resnet, name), tmp_path / "out")


def test_it_folds_into_the_model_that_ships_with_the_package(tmp_path: Path) -> None:
    tiny = load("tiny", device="cpu")
    assert_is_the_learner(tiny, trained_adapter(tiny, "clip-lora"), tmp_path / "out")


@pytest.mark.parametrize("name", ["zero-shot", "gda", "linear-probe"])
def test_a_linear_classifier_on_features_is_a_matrix_beside_towers_as_they_were(
    vit: Encoder, tmp_path: Path, name: str
) -> None:
    adapter = fitted_adapter(vit, name)
    folder = export(adapter, "open_clip", tmp_path / "out")
    weights = load_file(folder / "open_clip_model.safetensors")
    assert weights.keys() == vit.model.state_dict().keys()
    assert all(torch.equal(weights[key], t) for key, t in vit.model.state_dict().items())
    head = load_file(folder / "classifier.safetensors")
    features = vit.encode_images(pixels())
    if name != "linear-probe":
        features = normalize(features)
    predictor = with_encoder(adapter, vit)
    logits = features @ head["weight"].T + head.get("bias", torch.zeros(3))
    ours = predictor.logits(predictor.features(pixels()))
    torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["clip-lora", "linear-probe"])
def test_the_card_s_code_prints_the_predicted_class(
    vit: Encoder,
    tmp_path: Path,
    draw_photos: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    adapter = (trained_adapter if name in METHODS else fitted_adapter)(vit, name)
    folder = export(adapter, "open_clip", tmp_path / "out")
    photo = draw_photos(1) / "red" / "000.jpg"
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(folder)
    exec(code[1].replace("image.jpg", str(photo)), {})
    predictor = with_encoder(adapter, vit)
    crop = predictor.preprocess.center(read_rgb(photo, exif=True))[None]
    [expected] = predictor.probabilities(predictor.features(crop))
    printed, _, probability = capsys.readouterr().out.strip().rpartition(" ")
    assert printed == NAMES[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-4)


def test_every_other_method_is_refused_by_name(vit: Encoder) -> None:
    for name in METHODS.keys() - {*FOLDED, *TOWERS_AS_THEY_WERE}:
        refused = rf"{re.escape(name)} cannot be exported to open_clip: .*; use"
        with pytest.raises(UserError, match=refused):
            require_towers(trained_adapter(vit, name))
    for name in ("tip-adapter", "tip-x", "proker", "clip-adapter"):
        with pytest.raises(UserError, match=f"{name} cannot be .* its classifier is no matrix"):
            require_towers(fitted_adapter(vit, name))


def test_an_adapter_of_the_text_alone_is_a_matrix(vit: Encoder) -> None:
    require_towers(fitted_adapter(vit, "clip-adapter", adapter="text"))


@pytest.mark.parametrize(
    ("file", "key", "what"),
    [
        ("open_clip_model", "visual.ln_post.bias", "image features"),
        ("open_clip_model", "ln_final.bias", "text features"),
    ],
)
def test_towers_that_compute_something_else_are_found_out(
    vit: Encoder, tmp_path: Path, file: str, key: str, what: str
) -> None:
    adapter = trained_adapter(vit, "coop")
    folder = export(adapter, "open_clip", tmp_path / "out")
    path = folder / f"{file}.safetensors"
    weights = load_file(path)
    weights[key] = weights[key] + torch.linspace(0, 0.01, len(weights[key]))
    save_file(weights, path)
    head = Head(load_file(folder / "classifier.safetensors")["weight"], None, unit_norm=True)
    with pytest.raises(UserError, match=f"the export's {what} are off by"):
        check(folder, with_encoder(adapter, vit), head, SENTENCES, vit.encode_text(SENTENCES))


def test_the_adapter_s_preprocessing_is_open_clip_s(vit: Encoder, tmp_path: Path) -> None:
    adapter = fitted_adapter(vit, "gda")
    squashed = {**adapter.preprocessing, "resize_mode": "squash", "mean": [0.1, 0.2, 0.3]}
    folder = export(replace(adapter, preprocessing=squashed), "open_clip", tmp_path / "out")
    loaded = load(f"local-dir:{folder}", device="cpu").preprocess
    assert (loaded.resize_mode, loaded.mean) == ("squash", (0.1, 0.2, 0.3))


def test_quick_gelu_that_weights_want_is_in_the_configuration(vit: Encoder) -> None:
    identity = {"name": "ViT-B-32/openai", "arch": "ViT-B-32", "quick_gelu": True}
    config = model_config(replace(vit, identity=identity))
    assert config["quick_gelu"] is True
    assert config["vision_cfg"]["patch_size"] == 32
    plain = model_config(replace(vit, identity={**identity, "quick_gelu": False}))
    assert "quick_gelu" not in plain
    own = json.loads(
        (Path(str(vit.identity["name"]).removeprefix("local-dir:")) / "open_clip_config.json")
        .read_text(encoding="utf-8")
    )  # fmt: skip
    assert model_config(vit) == own["model_cfg"]
