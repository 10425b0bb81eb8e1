from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.optim import AdamW

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS, configure
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod, class_text

NAMES = ["cat", "long_haired dog", "zebra"]
TEMPLATES = ["{} texture.", "a much longer {} in a room"]


@dataclass(frozen=True)
class Shift(PEFTMethod):
    """Trains the last norm's shift in each tower."""

    name: ClassVar[str] = "shift"

    def insert(self, clip: Clip) -> Inserted:
        paths = {"image": ["visual.ln_post.bias"], "text": ["ln_final.bias"]}
        both = paths["image"] + paths["text"]
        chosen = {p: clip.model.get_parameter(p) for p in paths.get(self.towers, both)}
        return {path: p.requires_grad_() for path, p in chosen.items()}, [nn.Dropout().eval()]


def prompted(encoder: Encoder, template: str) -> torch.Tensor:
    tokens = encoder.tokenizer([template.format(name.replace("_", " ")) for name in NAMES])
    with torch.no_grad():
        model: Any = encoder.model
        return normalize(model.encode_text(tokens), dim=-1)


def test_a_class_is_the_mean_of_its_prompts_unit_features(encoder: Encoder) -> None:
    expected = normalize(sum(prompted(encoder, t) for t in TEMPLATES), dim=-1)  # type: ignore[arg-type]
    text = class_text(Clip.of(encoder), NAMES, TEMPLATES)
    torch.testing.assert_close(text, expected, rtol=1e-5, atol=2e-6)
    assert not text.requires_grad


@pytest.mark.parametrize("towers", ["text", "both"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_a_changed_text_tower_runs_live_on_the_first_template(
    encoder: Encoder, towers: Any, chunk: int
) -> None:
    learner = Shift(towers=towers, text_chunk=chunk).attach(Clip.of(encoder), NAMES, TEMPLATES)
    torch.testing.assert_close(
        normalize(learner.text(), dim=-1), prompted(encoder, TEMPLATES[0]), rtol=1e-5, atol=2e-6
    )
    learner.text().sum().backward()  # type: ignore[no-untyped-call]
    assert learner.parameters["ln_final.bias"].grad is not None
    assert (learner.images is None) == (towers == "text")


def test_with_dropout_every_prompt_runs_through_all_of_its_tokens(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    learner = Shift(towers="text", template="all alike {}").attach(clip, NAMES, TEMPLATES)
    seen = []
    block = clip.model.transformer.resblocks[0]
    block.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[:-1].numel()))
    tokens = encoder.tokenizer([f"all alike {name.replace('_', ' ')}" for name in NAMES])
    learner.text()
    for module in learner.modules:
        module.train()
    learner.text()
    every = int((tokens.argmax(dim=1) + 1).sum())
    assert seen == [every - 2 * len(["start", "all", "alike"]), every]


@pytest.mark.parametrize("towers", ["image", "text"])
def test_a_template_of_ones_own_takes_their_place(encoder: Encoder, towers: Any) -> None:
    method = Shift(towers=towers, template="one {} here")
    text = method.attach(Clip.of(encoder), NAMES, TEMPLATES).text()
    torch.testing.assert_close(
        normalize(text, dim=-1), prompted(encoder, "one {} here"), rtol=1e-5, atol=2e-6
    )


def test_a_frozen_head_is_no_parameter_and_a_tuned_one_is(encoder: Encoder) -> None:
    frozen = Shift().attach(Clip.of(encoder), NAMES, TEMPLATES)
    assert set(frozen.parameters) == {"visual.ln_post.bias"}
    assert not frozen.text().requires_grad
    tuned = Shift(head="trained").attach(Clip.of(encoder), NAMES, TEMPLATES)
    assert set(tuned.parameters) == {"visual.ln_post.bias", "head"}
    torch.testing.assert_close(tuned.text().detach(), frozen.text(), rtol=0, atol=0)
    tuned.text().sum().backward()  # type: ignore[no-untyped-call]
    assert tuned.parameters["head"].grad is not None


def test_steps_grow_with_the_shots_and_adamw_takes_all(encoder: Encoder) -> None:
    method = Shift(lr=2e-3, weight_decay=0.3, batch_size=8, iterations_per_shot=10)
    plan = method.plan(4, 1000)
    assert (plan.iterations, plan.batch_size, plan.drop_last) == (40, 8, False)
    assert plan.crop_scale == (0.08, 1.0)
    assert plan.schedule(0, 0.0) == pytest.approx(2e-3)
    assert plan.schedule(9, 1.0) == pytest.approx(1e-6)
    learner = Shift(head="trained").attach(Clip.of(encoder), NAMES, TEMPLATES)
    optimizer = method.optimizer(learner)
    assert isinstance(optimizer, AdamW)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.3
    assert [id(p) for p in group["params"]] == [id(p) for p in learner.parameters.values()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"towers": "left"}, "unknown towers 'left'"),
        ({"head": "none"}, "unknown head 'none'"),
        ({"head": "trained", "towers": "both"}, "head must be frozen where the text tower is"),
        ({"lr": 0.0}, "must be more than 0"),
        ({"weight_decay": -1.0}, "must be 0 or more"),
        ({"template": "a photo"}, "template must have {} for the class name"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shift(**settings)


@pytest.mark.parametrize("name", METHODS)
def test_no_setting_of_any_method_can_be_no_number_or_endless(name: str) -> None:
    numbers = [f.name for f in fields(METHODS[name]) if f.type in ("float", float)]
    for field in numbers:
        for wrong in ("nan", "inf", "-1e400"):
            with pytest.raises(UserError, match=f"{field} must be .*; got "):
                configure(name, {field: wrong}, seed=1)


def test_a_seed_that_torch_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="seed must be a whole number of 64 bits; got 1000000"):
        configure("coop", {"seed": "1" + 20 * "0"}, seed=1)
