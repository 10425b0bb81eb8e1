from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.methods.kgcoop import KgCoOp
from tests.naive_prompts import text_around, text_of

NAMES = ["cat", "long_haired dog", "zebra crossing", "b"]
TEMPLATES = ["{} texture.", "a photo of one {}."]
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def images() -> torch.Tensor:
    return 7 * torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight", [0.0, 8.0])
@pytest.mark.parametrize(("ctx_init", "chunk"), [("a photo of a", 0), ("", 3)])
def test_loss_and_gradient_are_those_of_the_papers_forward_pass(
    encoder: Encoder, weight: float, ctx_init: str, chunk: int
) -> None:
    method = KgCoOp(weight=weight, ctx_init=ctx_init, text_chunk=chunk)
    learner: Any = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    [context] = learner.parameters.values()
    assert context.shape == (4, 8)
    theirs = context.detach().clone().requires_grad_()

    loss, logits = learner.loss(images(), LABELS)
    loss.backward()
    text = text_around(encoder, theirs, NAMES)
    expected = learner.logit_scale * normalize(images()) @ text.T
    crafted = text_of(encoder, NAMES, TEMPLATES)
    distances = [1 - text[k] @ crafted[k] for k in range(4)]
    naive = cross_entropy(expected, LABELS) + weight * sum(distances) / 4
    naive.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(context.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_the_text_tower_runs_once_a_step(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    learner = KgCoOp().attach(clip, NAMES, TEMPLATES)
    runs: list[int] = []
    clip.model.ln_final.register_forward_hook(lambda *given: runs.append(1))
    learner.loss(images(), LABELS)
    assert len(runs) == 1


def test_words_that_are_the_prompts_are_at_no_distance(encoder: Encoder) -> None:
    attached = (
        method.attach(Clip.of(encoder), NAMES, ["a photo of a {}."])
        for method in (KgCoOp(weight=1000.0), CoOp(ctx_init="a photo of a"))
    )
    held, free = (learner.loss(images(), LABELS)[0] for learner in attached)
    torch.testing.assert_close(held, free, rtol=1e-5, atol=2e-4)


def test_without_weight_it_is_coop(encoder: Encoder) -> None:
    words = "a photo of a"
    attached = (
        method.attach(Clip.of(encoder), NAMES, TEMPLATES)
        for method in (KgCoOp(weight=0.0), CoOp(ctx_init=words))
    )
    losses = [learner.loss(images(), LABELS)[0] for learner in attached]
    assert torch.equal(*losses)


def test_the_recipe_is_the_authors() -> None:
    plan = KgCoOp().plan(16, 1616)
    assert plan.iterations == 100 * 12
    assert plan.batch_size == 128
    assert plan.drop_last
    assert KgCoOp().plan(1, 47).iterations == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must be 0 or more; got -1.0"),
        ({"weight": float("nan")}, "weight must be 0 or more"),
        ({"lr": 0.0}, "must be more than 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KgCoOp(**settings)
