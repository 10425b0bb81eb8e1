"""What every end-to-end method must hold to, whatever it puts into the towers."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters.opened_adapter import attached as reloaded
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS, configure
from fewshot.methods import METHODS as CACHED
from fewshot.settings import describe
from tests.toy_adapters import trained_adapter

NAMES = ["cat", "long_haired dog", "zebra"]
LABELS = torch.tensor([0, 1, 2, 1])
RESNET_TOO = {  # the others need a ViT
    "coop", "cocoop", "kgcoop", "prograd", "craft", "plot", "clip-lora", "live-linear-probe",
    "live-ueo", "live-two-stage", "dp-bitfit",
    "ln-tune", "2sfs", "bitfit", "full-fine-tuning", "krona", "kadaptation", "ssf", "visual-prompt",
    "evp", "lion", "side-tuning",
}  # fmt: skip
every_method = pytest.mark.parametrize("name", METHODS)


def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def attached(name: str, encoder: Encoder, seed: int = 1) -> tuple[Clip, Any]:
    clip = Clip.of(encoder)
    learner: Any = configure(name, {}, seed=seed).attach(clip, NAMES, ["a photo of a {}."])
    if learner.calibrate is not None:
        learner.calibrate([pixels()], LABELS)
    if learner.survey is not None:
        learner.survey(torch.randn(4, 16, generator=torch.Generator().manual_seed(2)))
    return clip, learner


def loss(learner: Any) -> Tensor:
    features = torch.ones(4, 16) if learner.images is None else learner.images(pixels())
    value: Tensor = learner.loss(features, LABELS)[0]
    return value


@every_method
def test_a_method_is_listed_under_its_own_name_and_no_cached_one_has_it(name: str) -> None:
    assert METHODS[name].name == name
    assert name not in CACHED


@every_method
def test_what_is_declared_gets_a_gradient_and_nothing_else_does(
    name: str, encoder: Encoder
) -> None:
    clip, learner = attached(name, encoder)
    loss(learner).backward()  # type: ignore[no-untyped-call]
    declared = {id(p) for p in learner.parameters.values()}
    assert any(p.grad is not None for p in learner.parameters.values())
    assert all(p.requires_grad for p in learner.parameters.values())
    for parameter in clip.model.parameters():
        assert parameter.grad is None or id(parameter) in declared


@every_method
def test_it_says_beforehand_whether_it_needs_images(name: str, encoder: Encoder) -> None:
    _, learner = attached(name, encoder)
    assert configure(name, {}, seed=1).on_images == (learner.images is not None)


@pytest.mark.parametrize("name", ["clip-lora", "adaptformer"])
def test_with_the_text_tower_alone_it_needs_none(name: str, encoder: Encoder) -> None:
    method = configure(name, {"towers": "text"}, seed=1)
    assert not method.on_images
    assert method.attach(Clip.of(encoder), NAMES, ["{}"]).images is None


@every_method
def test_the_encoder_it_was_made_of_stays_as_it_was(name: str, encoder: Encoder) -> None:
    before = copy.deepcopy(encoder.model.state_dict())
    _, learner = attached(name, encoder)
    loss(learner).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter += 1.0
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[key])


@every_method
def test_the_same_seed_draws_the_same_and_the_global_generator_is_left_alone(
    name: str, encoder: Encoder
) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again = (attached(name, encoder)[1].parameters for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)


@every_method
def test_logits_are_float32_and_finite_one_per_class_in_bfloat16_as_well(
    name: str, encoder: Encoder
) -> None:
    _, learner = attached(name, encoder)
    for precise in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            features = torch.ones(4, 16) if learner.images is None else learner.images(pixels())
            logits = learner.logits(features)
        assert logits.shape == (4, 3)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@every_method
def test_saving_memory_changes_no_gradient(name: str, encoder: Encoder) -> None:
    gradients = []
    for saving in (False, True):
        clip, learner = attached(name, encoder)
        if saving:
            clip.save_memory()
        for module in learner.modules:
            module.train()
        torch.manual_seed(0)
        loss(learner).backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in learner.parameters.values() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, saved, rtol=1e-4, atol=1e-6)


@every_method
def test_a_few_steps_go_down(name: str, encoder: Encoder) -> None:
    _, learner = attached(name, encoder)
    optimizer = configure(name, {}, seed=1).optimizer(learner)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        value = loss(learner)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(float(value.detach()))
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        optimizer.step()
    assert losses[-1] < losses[0]


@every_method
def test_a_resnet_s_image_tower_is_served_or_refused_by_name(name: str, resnet: Encoder) -> None:
    if name in RESNET_TOO:
        assert torch.isfinite(loss(attached(name, resnet)[1]))
    else:
        with pytest.raises(UserError, match="ResNet"):
            attached(name, resnet)


@pytest.mark.parametrize(("saving", "runs"), [(False, 1), (True, 2)])
def test_saving_memory_runs_every_block_twice(encoder: Encoder, saving: bool, runs: int) -> None:
    clip, learner = attached("clip-lora", encoder)
    if saving:
        clip.save_memory()
    seen: list[int] = []
    for blocks in (clip.model.transformer.resblocks, clip.model.visual.transformer.resblocks):
        for block in blocks:
            block.ln_1.register_forward_pre_hook(lambda *_: seen.append(1))
    loss(learner).backward()  # type: ignore[no-untyped-call]
    assert len(seen) == 4 * runs  # two blocks in either tower


def test_an_adapter_from_when_a_trained_head_was_called_tuned_still_loads(encoder: Encoder) -> None:
    new = trained_adapter(encoder, "bitfit", head="trained")
    old = replace(new, settings={**new.settings, "head": "tuned"})
    for adapter in (new, old):
        learner, _ = reloaded(adapter, Clip.of(encoder))
        assert torch.equal(learner.parameters["head"], new.tensors["head"])


def test_every_method_says_in_a_sentence_of_its_own_what_it_does() -> None:
    summaries = [vars(method).get("summary", "") for method in METHODS.values()]
    assert len(set(summaries)) == len(METHODS)
    for summary in summaries:
        assert summary[:1].isupper()
        assert summary.endswith(".")


def test_its_settings_page_shows_the_sentence() -> None:
    assert METHODS["ssf"].summary in describe("ssf", METHODS)
