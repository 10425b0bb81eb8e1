import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.two_stage_few_shot import TwoStageFewShot
from fewshot.endtoend.train import train
from tests.image_peft import LABELS, NAMES, TEMPLATES, pixels

METHOD = TwoStageFewShot(iterations_per_shot=5, lr=1e-2)  # 3 steps of the norms, 2 of the head


def trained(encoder: Encoder, checkpoint: Path | None = None, stop: int = 0) -> dict[str, Tensor]:
    """What is learned in full batches of four images."""
    clip = Clip.of(encoder)
    learner = METHOD.attach(clip, NAMES, TEMPLATES)

    def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(
            learner, clip, METHOD.plan(1, 4), METHOD.optimizer(learner),
            lambda rows, epoch: pixels()[rows], LABELS,
            seed=1, checkpoint=checkpoint, every=0, watch=watch,
        )  # fmt: skip
    return {k: v.detach().clone() for k, v in learner.parameters.items()}


def test_it_learns_what_two_plain_loops_over_open_clip_s_model_learn(encoder: Encoder) -> None:
    model: Any = load_again(encoder)
    norms = [p for n, p in model.named_parameters() if ".ln_" in f".{n}"]
    prompts = encoder.tokenizer([f"{name.replace('_', ' ')} texture." for name in NAMES])
    for parameter in norms:
        parameter.requires_grad_()

    def text() -> Tensor:
        return normalize(model.encode_text(prompts), dim=1)

    def steps(parameters: list[Any], n: int, classes: Any) -> None:
        optimizer = AdamW(parameters, lr=1e-2, weight_decay=1e-2)
        schedule = CosineAnnealingLR(optimizer, n, eta_min=1e-6)
        for _ in range(n):
            images = normalize(model.encode_image(pixels()), dim=1)
            logits = model.logit_scale.exp() * images @ normalize(classes(), dim=1).T
            optimizer.zero_grad()
            cross_entropy(logits, LABELS).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    steps(norms, 3, text)
    tuned = {n: p.detach().clone() for n, p in model.named_parameters() if ".ln_" in f".{n}"}
    head = text().detach().requires_grad_()
    steps([head], 2, lambda: head)

    learned = trained(encoder)
    assert set(learned) == {*tuned, "head"}
    torch.testing.assert_close(learned["head"], head.detach(), rtol=1e-3, atol=1e-4)
    for name, value in tuned.items():
        torch.testing.assert_close(learned[name], value, rtol=1e-3, atol=1e-4)


def load_again(encoder: Encoder) -> Any:
    """A copy of open_clip's own model, frozen."""
    import copy

    return copy.deepcopy(encoder.model).requires_grad_(False)


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_stopped_in_either_stage_it_goes_on_to_the_same_bits(
    encoder: Encoder, tmp_path: Path, stop: int
) -> None:
    path = tmp_path / "c.safetensors"
    trained(encoder, path, stop)
    resumed, undisturbed = trained(encoder, path), trained(encoder)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_the_recipe_is_the_authors() -> None:
    plan = TwoStageFewShot().plan(16, 752)
    assert (plan.iterations, plan.batch_size) == (4800, 32)
    rates = [plan.schedule(0, step / 4800) for step in (0, 1440, 2879, 2880, 3840, 4799)]
    assert rates == pytest.approx([2e-4, 1.005e-4, 1e-6, 2e-4, 1.005e-4, 1e-6], abs=1e-9)


def test_the_norms_of_one_tower_or_none_can_be_tuned(encoder: Encoder) -> None:
    alone = TwoStageFewShot(towers="text")
    assert not alone.on_images
    assert alone.attach(Clip.of(encoder), NAMES, TEMPLATES).images is None
    assert TwoStageFewShot(norms_share=0.0).plan(1, 4).schedule(0, 0.0) == 2e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norms_share": 1.0}, "norms_share must be 0 or more and less than 1"),
        ({"towers": "image", "head": "trained"}, "2sfs trains the head in its second stage"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TwoStageFewShot(**settings)
