import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.models.encoder import Encoder, wrap
from cache.models.image_only import ImageOnly, no_text
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.endtoend.attention import fuse, unfuse
from fewshot.endtoend.clip import Clip, EndToEnd
from fewshot.endtoend.methods import METHODS
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe
from fewshot.endtoend.methods.visual_prompt import VisualPrompt
from fewshot.endtoend.parts import weight_delta
from fewshot.endtoend.text_tower import encode
from fewshot.model_selection.calibration import Calibration
from tests.image_peft import NAMES, TEMPLATES, attached, pixels
from tests.modern_towers import SIGLIP, SMALL, TRUNKS, coca, trunk, two_towers

COCA = {"embed_cls": True, "layers": 2}
VIT, EVA = "vit_tiny_patch16_224", "vit_small_patch16_dinov3"


@pytest.fixture(scope="module", params=[VIT, EVA])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return two_towers(request.param)


@pytest.mark.parametrize("name", TRUNKS)
@torch.no_grad()
def test_timms_towers_are_taken_apart_and_put_back(name: str) -> None:
    model = trunk(name)
    size = model.patch_embed.img_size[0]
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours = copy.deepcopy(model)
    unfuse(ours)
    assert not [n for n, m in ours.named_modules() if n.endswith("qkv") and hasattr(m, "weight")]
    torch.testing.assert_close(ours(image), model(image), rtol=2e-6, atol=2e-6)
    fuse(ours)
    assert torch.equal(ours(image), model(image))
    assert ours.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("clip-lora", {"towers": towers}) for towers in ("image", "both")),
        *((name, {}) for name in ("kadaptation", "fact", "full-delta", "difffit", "ssf")),
        *((name, {}) for name in ("repadapter", "adaptformer", "houlsby-adapter", "convpass")),
        *((name, {}) for name in ("sct", "adapterbias", "patt", "ln-tune", "bitfit")),
        ("full-fine-tuning", {"last": 1}),
    ],
)
def test_methods_start_as_zero_shot_and_learn(
    encoder: Encoder, name: str, settings: dict[str, Any]
) -> None:
    method: Any = METHODS[name](**settings)
    _, learner = attached(encoder, method)
    assert learner.images is not None
    expected = encoder.model.encode_image(pixels())
    torch.testing.assert_close(learner.images(pixels()), expected, rtol=1e-5, atol=1e-5)
    _, learner = attached(encoder, method, moved=0.1)
    assert learner.images is not None
    learner.loss(learner.images(pixels()), torch.tensor([0, 1, 2, 1]))[0].backward()  # type: ignore[no-untyped-call]
    reached = {n for n, p in learner.parameters.items() if p.grad is not None and p.grad.any()}
    unused = {n for n in learner.parameters if "text.transformer" not in n and "head" not in n}
    assert len(reached & unused) > 0.8 * len(unused)


@torch.no_grad()
def test_an_update_is_folded_into_timms_own_weights(encoder: Encoder) -> None:
    clip, learner = attached(encoder, CLIPLoRA(matrices="q,k,v,o,fc1,fc2"), moved=0.1)
    assert learner.images is not None
    image = learner.images(pixels()), clip.model.encode_text(clip.tokens(["a dog"]))
    weight_delta.fold(clip.model)
    fuse(clip.model)
    assert clip.model.state_dict().keys() == encoder.model.state_dict().keys()
    torch.testing.assert_close(clip.model.encode_image(pixels()), image[0], rtol=1e-4, atol=1e-4)
    text = clip.model.encode_text(clip.tokens(["a dog"]))
    torch.testing.assert_close(text, image[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [{}, {"no_causal_mask": True}, SIGLIP, COCA])
@pytest.mark.parametrize(
    ("position", "prompt"),
    [("end", "a photo of a {}."), ("front", "{} a photo of a."), ("middle", "a photo {} of a.")],
)
@torch.no_grad()
def test_a_context_of_words_is_those_words(
    text: dict[str, Any], position: Any, prompt: str
) -> None:
    encoder = two_towers(VIT, **text)
    names = ["cat", "very very long haired dog", "zebra"]  # the second fills the context
    expected = encoder.encode_text([prompt.format(name) for name in names])
    method = CoOp(ctx_init="a photo of a", position=position)
    learner = method.attach(Clip.of(encoder), names, ["a {}"])
    torch.testing.assert_close(learner.text(), expected, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_a_text_tower_with_a_mask_for_each_prompt_is_taken_apart() -> None:
    encoder = two_towers(VIT, **COCA)
    tokens = encoder.tokenizer(["a cat", "a photo of a long haired dog"])
    ours = copy.deepcopy(encoder.model)
    unfuse(ours)
    expected = encoder.model.encode_text(tokens)
    torch.testing.assert_close(encode(ours, tokens), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["kgcoop", "prograd", "cocoop"])
def test_prompts_are_learned_before_a_tower_that_is_not_causal(name: str) -> None:
    n_ctx: dict[str, Any] = {"n_ctx": 4}
    learner = METHODS[name](**n_ctx).attach(Clip.of(two_towers(VIT, **SIGLIP)), NAMES, TEMPLATES)
    features = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    learner.loss(features, torch.tensor([0, 1, 2]))[0].backward()  # type: ignore[no-untyped-call]
    gradient = learner.parameters["context"].grad
    assert gradient is not None
    assert gradient.any()


@pytest.mark.parametrize("name", ["maple", "promptsrc", "cocoop"])
def test_prompts_are_learned_before_the_class_token_of_coca(name: str) -> None:
    encoder = coca()
    start: dict[str, Any] = {"ctx_init": "a photo of a", "n_ctx": 4}
    learner = METHODS[name](**start).attach(Clip.of(encoder), NAMES, TEMPLATES)
    if name == "cocoop":  # whose context starts as the words, for every image
        expected = encoder.encode_text(
            [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
        )
        torch.testing.assert_close(normalize(learner.text()), expected, rtol=1e-5, atol=2e-6)
    features = (learner.images or encoder.model.encode_image)(pixels())
    learner.loss(features, torch.tensor([0, 1, 2, 1]))[0].backward()  # type: ignore[no-untyped-call]
    for parameter in learner.parameters.values():
        assert parameter.grad is not None
    context = learner.parameters["context"].grad
    assert context is not None
    assert context.any(dim=-1).all()


def image_alone() -> Encoder:
    name = "timm:small"
    model = ImageOnly(trunk(EVA), name)
    model.visual.preprocess_cfg["size"] = SMALL["img_size"]
    return wrap(model, no_text(name), torch.device("cpu"), name=name, arch=name)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("siglip", CoOp(n_ctx=2)),
        ("siglip", CLIPLoRA(towers="both")),
        ("siglip", VisualPrompt(pad=4)),
        ("alone", LiveLinearProbe()),
        ("alone", VisualPrompt(pad=4, head="trained")),
        ("alone", CLIPLoRA(towers="image", head="trained")),
    ],
)
@torch.no_grad()
def test_what_was_learned_is_read_again(kind: str, method: EndToEnd, tmp_path: Path) -> None:
    encoder = two_towers(VIT, **SIGLIP) if kind == "siglip" else image_alone()
    learner = method.attach(clip := Clip.of(encoder), NAMES, TEMPLATES)
    for i, parameter in enumerate(learner.parameters.values()):
        shape, generator = parameter.shape, torch.Generator().manual_seed(i)
        parameter.add_(0.1 * torch.randn(shape, generator=generator))
    Adapter(
        method.name, asdict(method), dict(encoder.identity),
        {**encoder.preprocess.identity(), "exif": True}, "fp32", tuple(NAMES), (),
        tuple(TEMPLATES), {}, Calibration(1.0, 0, "none"), None, learner.state(),
    ).save(tmp_path / "a.safetensors")  # fmt: skip
    again = with_encoder(load_adapter(tmp_path / "a.safetensors"), encoder)
    expected = learner.logits((learner.images or clip.model.encode_image)(pixels()))
    torch.testing.assert_close(again.logits(again.features(pixels())), expected)


def test_what_a_tower_lacks_is_said() -> None:
    eva02 = two_towers("eva02_base_patch16_clip_224")
    with pytest.raises(UserError, match=r"no matrix fc1: .*blocks\.0 has a gated MLP, SwiGLU"):
        CLIPLoRA(matrices="fc1").attach(Clip.of(eva02), NAMES, TEMPLATES)
    CLIPLoRA(matrices="q,v,fc2").attach(Clip.of(eva02), NAMES, TEMPLATES)
    model = eva02.model

    class Own(type(model.visual.trunk)):  # type: ignore[misc]  # a base known at run time alone
        def forward_features(self, x: Any, **how: Any) -> Any:
            return super().forward_features(x, **how)

    model.visual.trunk.__class__ = Own
    with pytest.raises(UserError, match=r"vpt-deep changes how tokens run .* timm's Own runs"):
        METHODS["vpt-deep"]().attach(Clip.of(eva02), NAMES, TEMPLATES)
    model.visual.trunk = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(
        UserError, match=r"adaptformer needs the blocks of a vision .* is a ResNet;"
    ):
        METHODS["adaptformer"]().attach(Clip.of(eva02), NAMES, TEMPLATES)
    model.text = torch.nn.Identity()
    with pytest.raises(UserError, match="Identity, is not open_clip's own, which takes embedd"):
        CoOp().attach(Clip.of(eva02), NAMES, TEMPLATES)
    with pytest.raises(
        UserError, match=r"blocks of open_clip's text transformer; .* Identity; use"
    ):
        CLIPLoRA().attach(Clip.of(eva02), NAMES, [])
