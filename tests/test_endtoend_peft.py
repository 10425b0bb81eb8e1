from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.attention import fuse, unfuse
from fewshot.endtoend.checkpoint import State
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.loss_trend import LossTrend
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.difffit import DiffFit
from fewshot.endtoend.methods.efft import EFFT
from fewshot.endtoend.methods.fact import FacT
from fewshot.endtoend.methods.fine_tuning import BitFit, FullFineTuning, LNTune
from fewshot.endtoend.methods.full_delta import FullDelta
from fewshot.endtoend.methods.kadaptation import KAdaptation
from fewshot.endtoend.methods.krona import KronA
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe
from fewshot.endtoend.methods.repadapter import RepAdapter
from fewshot.endtoend.methods.ssf import SSF
from fewshot.endtoend.parts.peft import PEFTMethod
from fewshot.endtoend.parts.weight_delta import fold
from fewshot.endtoend.train import train
from tests.image_peft import LABELS, NAMES, TEMPLATES, ids, move, pixels, with_

SMALL: list[PEFTMethod] = [  # text 8 and image 64 wide, as the random models are
    LNTune(),
    BitFit(),
    DiffFit(),
    FullFineTuning(),
    FullDelta(),
    KronA(factor=4),
    KAdaptation(terms=3, factor=4, scale=50.0, dropout=0.0),
    FacT(rank=2, dropout=0.0),
    FacT(rank=2, dropout=0.0, tucker=True),
    EFFT(rank=2, dropout=0.0),
    SSF(),
    RepAdapter(dim=4, dropout=0.0),
    CLIPLoRA(template="", matrices="q,v,o,fc1,fc2", dropout=0.0),
]


@pytest.mark.parametrize("method", SMALL, ids=ids)
@pytest.mark.parametrize("towers", ["image", "both"])
def test_before_training_it_is_zero_shot_clip(
    encoder: Encoder, method: PEFTMethod, towers: str
) -> None:
    learner: Any = with_(method, towers=towers).attach(Clip.of(encoder), NAMES, TEMPLATES)
    stock: Any = encoder.model
    with torch.no_grad():
        image = stock.encode_image(pixels())
        torch.testing.assert_close(learner.images(pixels()), image, rtol=1e-5, atol=2e-6)
        text = torch.zeros(3, 16)
        mean = towers == "image" and not isinstance(method, CLIPLoRA)  # which has one prompt
        for template in TEMPLATES if mean else TEMPLATES[:1]:
            tokens = encoder.tokenizer([template.format(n.replace("_", " ")) for n in NAMES])
            text = text + normalize(stock.encode_text(tokens), dim=-1)
        torch.testing.assert_close(
            normalize(learner.text(), dim=-1), normalize(text, dim=-1), rtol=1e-5, atol=2e-6
        )


def test_ssf_with_noise_does_not_start_from_clip(encoder: Encoder) -> None:
    learner: Any = SSF(noise=0.02).attach(Clip.of(encoder), NAMES, TEMPLATES)
    with torch.no_grad():
        stock: Any = encoder.model
        assert not torch.allclose(learner.images(pixels()), stock.encode_image(pixels()), atol=1e-3)


@pytest.mark.parametrize("method", SMALL, ids=ids)
@pytest.mark.parametrize("towers", ["image", "both", "text"])
def test_what_is_declared_gets_gradients_and_nothing_else(
    encoder: Encoder, method: PEFTMethod, towers: str
) -> None:
    clip = Clip.of(encoder)
    learner = with_(method, towers=towers).attach(clip, NAMES, TEMPLATES)
    assert (learner.images is None) == (towers == "text")
    move(learner.parameters)
    features = learner.images(pixels()) if learner.images else torch.randn(4, 16)
    learner.loss(features, LABELS)[0].backward()
    declared = {id(parameter) for parameter in learner.parameters.values()}
    for name, parameter in clip.model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in declared), name
    # A key's bias adds the same to every logit of its query, which softmax does not see.
    none = {n for n, p in learner.parameters.items() if not p.grad.abs().sum() > 0}
    assert all("k_proj" in name for name in none)
    assert len(declared) == len(learner.parameters)


@pytest.mark.parametrize("method", SMALL, ids=ids)
def test_training_moves_what_is_saved_and_nothing_else(
    encoder: Encoder, method: PEFTMethod, tmp_path: Path
) -> None:
    def built() -> Any:
        clip = Clip.of(encoder)
        short = with_(method, towers="both", lr=1e-3, iterations_per_shot=3)
        learner = short.attach(clip, NAMES, TEMPLATES)
        return clip, learner, short.plan(1, 4), short.optimizer(learner)

    clip, learner, plan, optimizer = built()
    before = {name: p.detach().clone() for name, p in clip.model.named_parameters()}
    path = tmp_path / "checkpoint"
    train(
        learner, clip, plan, optimizer, lambda rows, epoch: pixels()[rows], LABELS,
        seed=1, checkpoint=path,
    )  # fmt: skip
    tuned = {id(parameter) for parameter in learner.parameters.values()}
    for name, parameter in clip.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in tuned), name
    fresh, again, _, anew = built()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    State(again, anew, scaler, LossTrend(plan.iterations)).load(path, "")
    with torch.no_grad():
        assert torch.equal(again.images(pixels()), learner.images(pixels()))
        assert torch.equal(again.text(), learner.text())
    assert fresh is not clip


@pytest.mark.parametrize("method", SMALL, ids=ids)
def test_folded_it_is_a_stock_model_of_the_same_function(
    encoder: Encoder, method: PEFTMethod
) -> None:
    clip = Clip.of(encoder)
    learner: Any = with_(method, towers="both").attach(clip, NAMES, TEMPLATES)
    move(learner.parameters)
    tokens = encoder.tokenizer([TEMPLATES[0].format(n.replace("_", " ")) for n in NAMES])
    stock: Any = encoder.model
    with torch.no_grad():
        images, text = learner.images(pixels()), learner.text()
        assert not torch.allclose(images, stock.encode_image(pixels()), atol=1e-3)
        fold(clip.model)
        fuse(clip.model)
        torch.testing.assert_close(clip.model.encode_image(pixels()), images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(clip.model.encode_text(tokens), text, rtol=1e-4, atol=1e-4)
    keys = set(clip.model.state_dict())
    assert keys - {n for n in keys if n.endswith("conv1.bias")} == set(stock.state_dict())


@pytest.mark.parametrize("method", SMALL, ids=ids)
def test_in_half_precision_it_computes_about_the_same(encoder: Encoder, method: PEFTMethod) -> None:
    learner: Any = with_(method, towers="both").attach(Clip.of(encoder), NAMES, TEMPLATES)
    move(learner.parameters)
    with torch.no_grad():
        logits = learner.logits(learner.images(pixels()))
    with torch.autocast("cpu", torch.bfloat16):
        loss, near = learner.loss(learner.images(pixels()), LABELS)
    torch.testing.assert_close(near, logits, rtol=0.05, atol=1.0)
    loss.backward()
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in learner.parameters.values())


VIT_B_16 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1}


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (LNTune(), 39_936),
        (BitFit(), 102_912),
        (DiffFit(), 102_912 + 26 * 768 + 24),  # biases, the norms' scales, gains
        (FullFineTuning(), 86_192_640),
        (FullFineTuning(last=12), 86_192_640 - 3 * 768 * 256 - 198 * 768 - 2 * 768),
        (KronA(), 24 * 1_600),
        (KAdaptation(), 2 * 32 * 32 + 24 * (2 * 32 * 24 + 768)),
        (FacT(), 61_440),
        (EFFT(), 87_552),
        (FacT(tucker=True), 30_976),
        (SSF(), 205_824 + 2 * 768),  # the published one has no ln_pre
        (RepAdapter(), 239_808),
        (CLIPLoRA(), 184_320 - 11 * 6_144),  # the text tower here has one block of 12
        (LNTune(towers="both"), 39_936 + 3 * 2 * 512),
        (KronA(towers="both"), 24 * 1_600 + 2 * (32 * 32 + 16 * 16)),
    ],
)
def test_as_many_parameters_as_published_on_a_vit_b_16(method: PEFTMethod, count: int) -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(512, VIT_B_16, TEXT)
    unfuse(model)
    model.requires_grad_(False)
    clip: Any = SimpleNamespace(model=model)
    parameters, _ = method.insert(clip)
    assert sum(parameter.numel() for parameter in parameters.values()) == count


def test_the_head_can_be_trained_beside(encoder: Encoder) -> None:
    learner: Any = LNTune(head="trained").attach(Clip.of(encoder), NAMES, TEMPLATES)
    learner.loss(learner.images(pixels()), LABELS)[0].backward()
    assert learner.parameters["head"].shape == (3, 16)
    assert all(p.grad is not None for p in learner.parameters.values())


def test_a_linear_probe_trains_the_head_alone_on_features(encoder: Encoder) -> None:
    learner: Any = LiveLinearProbe().attach(Clip.of(encoder), NAMES, TEMPLATES)
    assert set(learner.parameters) == {"head"}
    assert learner.images is None
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    learner.loss(features, LABELS)[0].backward()
    head = learner.parameters["head"].detach().clone().requires_grad_()
    logits = learner.logit_scale * normalize(features, dim=1) @ normalize(head, dim=1).T
    cross_entropy(logits, LABELS).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(learner.parameters["head"].grad, head.grad)


@pytest.mark.parametrize(
    "method", [KAdaptation(factor=4), FacT(), EFFT(), RepAdapter(), CLIPLoRA()], ids=ids
)
def test_dropout_acts_in_training_alone(encoder: Encoder, method: PEFTMethod) -> None:
    learner: Any = with_(method, towers="both", dropout=0.5).attach(
        Clip.of(encoder), NAMES, TEMPLATES
    )
    move(learner.parameters)
    assert all(isinstance(module, nn.Dropout) for module in learner.modules)
    with torch.no_grad():
        images, text = learner.images(pixels()), learner.text()
        assert torch.equal(learner.images(pixels()), images)
        for module in learner.modules:
            module.train()
        assert not torch.allclose(learner.images(pixels()), images)
        assert not torch.allclose(learner.text(), text)


@pytest.mark.parametrize(
    "method", [KronA(factor=4), FacT(), EFFT(), RepAdapter(dim=4), CLIPLoRA()], ids=ids
)
def test_the_seed_draws_the_factors(encoder: Encoder, method: PEFTMethod) -> None:
    one, same, other = (
        with_(method, seed=seed).attach(Clip.of(encoder), NAMES, TEMPLATES).parameters
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("technique", "settings", "message"),
    [
        (LiveLinearProbe, {"head": "frozen"}, "head must be trained"),
        (KronA, {"factor": 0}, "factor must be a whole number, 1 or more; got 0"),
        (KAdaptation, {"terms": 0}, "terms must be a whole number, 1 or more; got 0"),
        (FacT, {"rank": 0}, "rank must be a whole number, 1 or more; got 0"),
        (CLIPLoRA, {"rank": 0}, "rank must be a whole number, 1 or more; got 0"),
        (CLIPLoRA, {"dropout": 1.0}, r"dropout must be 0 or more and less than 1; got 1.0"),
        (FacT, {"dropout": 1.0}, r"dropout must be 0 or more and less than 1; got 1.0"),
        (EFFT, {"dropout": 1.0}, r"dropout must be 0 or more and less than 1; got 1.0"),
        (EFFT, {"rank": 0}, "rank must be a whole number, 1 or more; got 0"),
        (SSF, {"noise": -1.0}, "noise must be 0 or more; got -1.0"),
        (RepAdapter, {"dim": 0}, "dim must be a whole number, 1 or more; got 0"),
        (RepAdapter, {"position": "top"}, "unknown position 'top'"),
    ],
)
def test_what_cannot_be_is_refused(
    technique: type[PEFTMethod], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        technique(**settings)
