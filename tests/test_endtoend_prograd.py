import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.prograd import ProGrad, words_before
from tests.naive_prompts import text_around, text_of

NAMES = ["cat", "long_haired dog", "zebra crossing", "b"]
TEMPLATES = ["a photo of a {}, a type of pet.", "{} texture."]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 16, generator=generator), torch.randint(4, (6,), generator=generator)


def naive(
    encoder: Encoder, context: Tensor, scale: float, seed: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, and the gradients of it and of the divergence from zero-shot CLIP."""
    images, labels = batch(seed)
    images = normalize(images)
    zero_shot = scale * images @ text_of(encoder, NAMES, TEMPLATES).T
    gradients = []
    for divergence in (False, True):
        theirs = context.detach().clone().requires_grad_()
        logits = scale * images @ text_around(encoder, theirs, NAMES).T
        loss = cross_entropy(logits, labels)
        value = loss.detach()
        if divergence:
            p = (zero_shot / temperature).softmax(dim=1)
            q = (logits / temperature).softmax(dim=1)
            loss = temperature**2 * (p * (p / q).log()).sum() / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        assert theirs.grad is not None
        gradients.append(theirs.grad)
    return value, *gradients  # type: ignore[return-value]


@pytest.mark.parametrize(("weight", "temperature", "chunk"), [(1.0, 1.0, 0), (0.8, 2.0, 3)])
def test_a_step_goes_down_the_projected_gradient_where_the_two_conflict(
    encoder: Encoder, weight: float, temperature: float, chunk: int
) -> None:
    method = ProGrad(weight=weight, temperature=temperature, text_chunk=chunk)
    learner: Any = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    [context] = learner.parameters.values()
    conflicts = []
    for seed in range(8):
        value, g, k = naive(encoder, context, learner.logit_scale, seed, temperature)
        cosine = float((g * k).sum() / g.norm() / k.norm())
        expected = g
        if cosine < 0:
            unit = k / k.norm()
            expected = g - weight * (g * unit).sum() * unit
        conflicts.append(cosine < 0)
        context.grad = None
        loss, _ = learner.loss(*batch(seed))
        loss.backward()
        torch.testing.assert_close(loss, value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(context.grad, expected, rtol=1e-3, atol=1e-5)
        if cosine < 0 and weight == 1.0:
            left = float((context.grad * k).sum() / g.norm() / k.norm())
            assert left == pytest.approx(0, abs=1e-4)
    assert set(conflicts) == {True, False}  # both kinds of batch were seen


def test_half_precision_does_not_blur_the_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 8, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    zero_shot = 1e-3 * torch.randn(6, 4, generator=generator)
    context = torch.nn.Parameter(1e-3 * torch.randn(4, 8, generator=generator))
    gradients: list[Tensor] = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            logits = 1e-3 * (images[:, None] * context).sum(dim=2)  # no product that is rounded
            loss = ProGrad()._projected(logits, labels, zero_shot, context)
        gradients += torch.autograd.grad(loss, context)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-12)


def test_without_weight_it_goes_down_the_cross_entropy(encoder: Encoder) -> None:
    learner: Any = ProGrad(weight=0.0).attach(Clip.of(encoder), NAMES, TEMPLATES)
    [context] = learner.parameters.values()
    for seed in range(4):
        _, g, _ = naive(encoder, context, learner.logit_scale, seed, 1.0)
        context.grad = None
        learner.loss(*batch(seed))[0].backward()
        torch.testing.assert_close(context.grad, g, rtol=1e-3, atol=1e-5)


def test_where_there_is_no_divergence_the_gradient_is_finite(encoder: Encoder) -> None:
    method = ProGrad(n_ctx=4)
    learner: Any = method.attach(Clip.of(encoder), NAMES, ["a photo of a {}."])
    [context] = learner.parameters.values()
    loss, _ = learner.loss(*batch(0))
    loss.backward()
    assert bool(torch.isfinite(context.grad).all())
    assert float(context.grad.norm()) > 0


def test_the_context_is_the_dataset_s_words_with_zeros_before_them(encoder: Encoder) -> None:
    learner = ProGrad().attach(Clip.of(encoder), NAMES, TEMPLATES)
    context = learner.parameters["context"].detach()
    tokens = encoder.tokenizer(["a type of pet, a photo of a"])
    words = encoder.model.token_embedding(tokens)[0, 1:10]
    assert context.shape == (16, 8)
    assert not context[:7].any()
    assert torch.equal(context[7:], words)
    assert list(learner.parameters) == ["context"]


def test_words_of_one_s_own_are_taken_and_may_be_more_than_the_vectors(encoder: Encoder) -> None:
    method = ProGrad(n_ctx=2, ctx_init="an old picture of")
    learner = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    words = encoder.model.token_embedding(encoder.tokenizer(["an old picture of"]))[0, 1:5]
    assert torch.equal(learner.parameters["context"], words)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of a {}.", "a photo of a"),
        ("a photo of {}, a type of food.", "a type of food, a photo of"),
        ("{} texture.", "texture"),
        ("{}", ""),
    ],
)
def test_what_a_prompt_says_beside_the_name_is_put_before_it(template: str, words: str) -> None:
    assert words_before(template) == words


def test_the_recipe_is_coop_s() -> None:
    assert [ProGrad().plan(k, 47 * k).iterations for k in (1, 2, 16)] == [50, 200, 4600]
    assert ProGrad().n_ctx == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must be 0 or more; got -1.0"),
        ({"temperature": 0.0}, "temperature must be more than 0"),
        ({"weight": math.nan}, "weight must be 0 or more"),
        ({"n_ctx": 0}, "n_ctx must be a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProGrad(**settings)
