import importlib.util
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import cut_prompts

PROMPTS = ["a", "a photo of a dog", "a much longer sentence about nothing in particular, really"]


@pytest.fixture(scope="module")
def vit(random_vit: Path) -> Encoder:
    return load(f"local-dir:{random_vit}", device="cpu")


def stock(directory: Path) -> Any:
    return open_clip.create_model(f"local-dir:{directory}").eval()


@pytest.mark.parametrize("tower", ["random_vit", "random_resnet"])
def test_features_are_the_stock_models(tower: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(tower)
    encoder, reference = load(f"local-dir:{directory}", device="cpu"), stock(directory)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokenizer(PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_images(pixels), reference.encode_image(pixels))
        torch.testing.assert_close(
            encoder.encode_text(PROMPTS), reference.encode_text(tokens), rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("name", ["tiny", "random_vit", "random_resnet"])
def test_pooled_text_times_the_projection_is_the_text(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = name if name == "tiny" else f"local-dir:{request.getfixturevalue(name)}"
    encoder = load(model, device="cpu")
    features, pooled = encoder.encode_text_pooled(PROMPTS)
    projection = encoder.text_projection
    assert pooled is not None
    assert projection is not None
    assert projection.shape == (pooled.shape[1], encoder.dim)
    torch.testing.assert_close(pooled @ projection, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.encode_text(PROMPTS), features, rtol=0, atol=0)


def with_projection(encoder: Encoder, directory: Path, projection: object) -> tuple[Any, Encoder]:
    from cache.models.encoder import wrap

    model = stock(directory)
    del model.text_projection
    model.text_projection = projection
    return model, wrap(model, encoder.tokenizer, encoder.device, name="x", arch="x")


def test_a_projection_that_is_a_layer_without_bias_is_its_weight(
    random_vit: Path, vit: Encoder
) -> None:
    layer = torch.nn.Linear(8, 16, bias=False)
    model, encoder = with_projection(vit, random_vit, layer)
    features, pooled = encoder.encode_text_pooled(PROMPTS)
    assert pooled is not None
    assert encoder.text_projection is not None
    torch.testing.assert_close(encoder.text_projection, layer.weight.T, rtol=0, atol=0)
    torch.testing.assert_close(pooled @ layer.weight.T, features, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = model.encode_text(encoder.tokenizer(PROMPTS))
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["none", "bias", "mlp", "not causal"])
def test_a_text_tower_that_ends_in_no_matrix_has_no_pooled_text(
    kind: str, random_vit: Path, vit: Encoder
) -> None:
    last = {
        "none": None,
        "bias": torch.nn.Linear(8, 16),
        "mlp": torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.ReLU()),
        "not causal": torch.nn.Parameter(torch.eye(8)),
    }[kind]
    model, encoder = with_projection(vit, random_vit, last)
    if kind == "not causal":
        model.attn_mask = None
    features, pooled = encoder.encode_text_pooled(PROMPTS)
    assert pooled is None
    assert encoder.text_projection is None
    assert torch.isfinite(features).all()


def test_text_runs_only_up_to_the_last_end_of_text_in_steps_of_eight(vit: Encoder) -> None:
    lengths = []
    hook = vit.model.transformer.register_forward_hook(
        lambda module, args, output: lengths.append(args[0].shape[1])
    )
    vit.encode_text(["a"])
    hook.remove()
    assert lengths == [8]  # start, "a", end, and five more; of 77


def test_the_identity_tells_what_the_model_is(vit: Encoder) -> None:
    assert vit.identity["dim"] == vit.dim == 16
    assert vit.identity["image_size"] == 32
    assert vit.identity["logit_scale"] == pytest.approx(1 / 0.07)
    assert vit.identity["quick_gelu"] is False
    json.dumps(vit.identity)


def test_the_weights_digest_changes_with_any_weight(random_vit: Path, vit: Encoder) -> None:
    from cache.models.encoder import wrap

    model = stock(random_vit)
    again = wrap(model, vit.tokenizer, vit.device, name="x", arch="x")
    assert again.identity["weights"] == vit.identity["weights"]
    with torch.no_grad():
        model.ln_final.bias[0] += 1e-3
    changed = wrap(model, vit.tokenizer, vit.device, name="x", arch="x")
    assert changed.identity["weights"] != vit.identity["weights"]


def test_openai_weights_get_quick_gelu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tag alone must force it: open_clip's ViT-B-32 is built with GELU and only warns."""
    from cache.models import loading

    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("RN50", force_quick_gelu=True).state_dict(), weights)
    monkeypatch.setattr(loading, "stay_offline_if_cut_off", lambda: None)
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained", lambda cfg, cache_dir=None: str(weights)
    )
    loaded = load("RN50/openai", device="cpu")
    assert loaded.identity["quick_gelu"] is True
    assert loaded.identity["tag"] == "openai"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-16", "names no weights; say ViT-B-16/TAG with one of: openai"),
        ("ViT-B-16/opnai", "unknown weights for ViT-B-16 'opnai'; did you mean 'openai'"),
        ("vit-b-61/openai", "unknown model 'vit-b-61'; did you mean 'ViT-B-16'"),
        ("nonsense", "unknown model 'nonsense'"),
        ("local-dir:/nowhere", "no model in /nowhere"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_neither_here_nor_to_be_had_name_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # of HF_HOME
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        load("ViT-B-16/openai", device="cpu")
    said = str(caught.value)
    assert said.startswith("cannot get the weights of ViT-B-16/openai (the model hub is out")
    for way in ("connect once", "HF_HOME", "local-dir:PATH", "--model tiny"):
        assert way in said
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")


def test_a_directory_without_weights_is_refused(tmp_path: Path, random_vit: Path) -> None:
    config = (random_vit / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(UserError, match="no model in"):
        load(f"local-dir:{tmp_path}", device="cpu")


def test_an_unknown_precision_is_refused(random_vit: Path) -> None:
    with pytest.raises(UserError, match="unknown precision 'fp61'; did you mean 'fp16'"):
        load(f"local-dir:{random_vit}", device="cpu", precision="fp61")


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_there_is_refused(
    device: str, random_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = torch.backends.mps if device == "mps" else getattr(torch, device)
    monkeypatch.setattr(home, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"torch sees no {device.upper()} device"):
        load(f"local-dir:{random_vit}", device=device)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP/webli", "ViT-B-16-SigLIP2/webli"])
def test_a_missing_package_is_named_before_weights_are_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cache.models import loading

    def fetched(*arguments: object) -> None:
        raise AssertionError("weights are fetched")

    monkeypatch.setattr(loading, "_create", fetched)
    monkeypatch.setattr(loading, "stay_offline_if_cut_off", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers, and .*pip install 'fewshot-clip\[hf\]'"):
        load(name, device="cpu")


HUGGING_FACE = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture
def random_siglip(tmp_path: Path) -> Path:
    """Directory of a SigLIP with random weights and a tokenizer of a few words."""
    text: dict[str, Any] = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2}
    text |= {"layers": 1, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text |= {"hf_tokenizer_name": "nobody/nowhere", "tokenizer_kwargs": {"clean": "canonicalize"}}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "init_logit_bias": -10}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**config, "custom_text": True}})
    )
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(16, vision, text, init_logit_bias=-10)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def add_tokenizer(folder: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "dog"]
    vocabulary: dict[str, Any] = {"type": "WordLevel", "unk_token": "<unk>"}
    vocabulary |= {"vocab": {word: i for i, word in enumerate(words)}}
    end = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    special = {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
    post = {"type": "TemplateProcessing", "single": end, "pair": end, "special_tokens": special}
    tokenizer: dict[str, Any] = {"version": "1.0", "added_tokens": [], "normalizer": None}
    tokenizer |= {"pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": post}
    tokenizer |= {"decoder": None, "truncation": None, "padding": None, "model": vocabulary}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    said |= {"eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


@HUGGING_FACE
def test_siglip_reads_lower_case_from_a_tokenizer_in_its_folder(random_siglip: Path) -> None:
    add_tokenizer(random_siglip)
    siglip = load(f"local-dir:{random_siglip}", device="cpu")
    assert siglip.tokenizer(["A photo of a DOG."]).tolist() == [[3, 4, 5, 3, 6, 1, 0, 0]]
    assert siglip.identity["loss"] == "sigmoid"
    assert siglip.identity["logit_bias"] == -10
    features = siglip.encode_text(["a dog", "A Dog!"])
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-6)
    assert cut_prompts(siglip.tokenizer, ["a photo of a dog"]) is None
    cut = cut_prompts(siglip.tokenizer, ["a dog", "a photo of a photo of a photo of a dog"])
    assert cut is not None
    assert cut.startswith("the model reads 8 tokens of a prompt, and 1 of 2 are longer, such as a ")


def test_prompts_longer_than_the_context_are_told_and_refused_where_they_become_one() -> None:
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=8)
    short = [f"a photo of a {name}." for name in ("dog", "cat")]  # with both ends just 8 tokens
    assert cut_prompts(tokenizer, short) is None
    long = [f"a {name} on a very green lawn" for name in ("dog", "cat")]
    assert cut_prompts(tokenizer, [*short, *long]) == (
        "the model reads 8 tokens of a prompt, and 2 of 4 are longer, such as "
        "a dog on a very green lawn…; they are cut"
    )
    same = [f"a photo of a very green lawn with a {name}" for name in ("dog", "cat")]
    with pytest.raises(UserError, match="what is left of two is the same, so shorten"):
        cut_prompts(tokenizer, same)


@HUGGING_FACE
def test_a_folder_without_the_tokenizer_is_refused_in_one_line(random_siglip: Path) -> None:
    with pytest.raises(UserError, match=r"cannot get the tokenizer .*; copy its files") as caught:
        load(f"local-dir:{random_siglip}", device="cpu")
    assert "\n" not in str(caught.value)


def test_other_models_record_no_sigmoid(vit: Encoder) -> None:
    assert not {"loss", "logit_bias"} & vit.identity.keys()


def test_crops_of_bytes_are_standardized_on_the_way(vit: Encoder) -> None:
    crops = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    crops = crops.to(torch.uint8)
    pixels = vit.preprocess.standardize(crops)
    assert torch.equal(vit.encode_images(crops), vit.encode_images(pixels))
    assert torch.equal(vit.encode_images_pooled(crops), vit.encode_images_pooled(pixels))


def test_bf16_is_close_to_fp32(random_vit: Path, vit: Encoder) -> None:
    half = load(f"local-dir:{random_vit}", device="cpu", precision="bf16")
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cosine = torch.cosine_similarity(half.encode_images(pixels), vit.encode_images(pixels))
    assert cosine.min() > 0.999
    assert not torch.equal(half.encode_images(pixels), vit.encode_images(pixels))
