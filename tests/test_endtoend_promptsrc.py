import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.promptsrc import PromptSRC
from fewshot.endtoend.parts.diverse_templates import DIVERSE_TEMPLATES
from tests.image_peft import LABELS, NAMES, TEMPLATES, pixels
from tests.naive_deep_prompts import deep_image, deep_text
from tests.naive_prompts import text_of


def attached(encoder: Encoder, method: PromptSRC) -> Any:
    """With every parameter moved, so that no gradient vanishes."""
    learner = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return learner


@pytest.mark.parametrize(("depth", "chunk"), [(9, 0), (1, 2)])
def test_loss_and_gradients_are_those_of_the_published_code_on_77_tokens(
    encoder: Encoder, depth: int, chunk: int
) -> None:
    method = PromptSRC(depth=depth, text_chunk=chunk)
    learner = attached(encoder, method)
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()

    text = normalize(deep_text(encoder, theirs["context"], theirs["text_prompts"], NAMES), dim=1)
    tokens = list(theirs["image_prompts"])
    seen = [deep_image(encoder.model, tokens, image) for image in pixels()]
    images = normalize(torch.stack(seen), dim=1)
    expected = learner.logit_scale * images @ text.T
    known_text = text_of(encoder, NAMES, DIVERSE_TEMPLATES)
    with torch.no_grad():
        known_images: Tensor = normalize(encoder.model.encode_image(pixels()), dim=1)
    zero_shot = learner.logit_scale * known_images @ known_text.T
    divergence = 0.0
    for ours, frozen in zip(expected.softmax(1), zero_shot.softmax(1), strict=True):
        divergence = divergence + sum(p * (p / q).log() for p, q in zip(frozen, ours, strict=True))
    naive = (
        cross_entropy(expected, LABELS)
        + 25 * (text - known_text).abs().mean()
        + 10 * (images - known_images).abs().mean()
        + divergence / expected.numel()
    )
    naive.backward()

    assert len(theirs["text_prompts"]) == min(depth, 2) - 1  # the tower has two blocks
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    for name, parameter in learner.parameters.items():
        if parameter.numel():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def test_where_no_gradient_is_taken_the_frozen_tower_rests(encoder: Encoder) -> None:
    learner = attached(encoder, PromptSRC())
    with torch.no_grad():
        assert learner.images(pixels()).shape == (4, 16)
    both = learner.images(pixels())
    torch.testing.assert_close(both[:, 16:], encoder.model.encode_image(pixels()))
    assert not torch.allclose(both[:, :16], both[:, 16:], atol=1e-3)


def test_further_words_stay_between_the_learned_ones_and_the_name(encoder: Encoder) -> None:
    learner: Any = PromptSRC(n_ctx=2).attach(Clip.of(encoder), NAMES, TEMPLATES)
    context, deeper = learner.parameters["context"], learner.parameters["text_prompts"]
    assert context.shape == (2, 8)
    assert learner.parameters["image_prompts"].shape == (2, 2, 64)
    expected = deep_text(encoder, context, deeper, NAMES, words="of a")
    torch.testing.assert_close(learner.text(), expected, rtol=1e-4, atol=1e-5)


def test_epochs_have_a_gaussian_s_weights_of_sum_one() -> None:
    plan = PromptSRC(epochs=6, gpa_mean=4, gpa_std=2).plan(4, 41)
    assert plan.iterations == 6 * 10
    assert sum(plan.epoch_shares) == pytest.approx(1)
    assert max(plan.epoch_shares) == plan.epoch_shares[3]
    assert plan.epoch_shares[1] / plan.epoch_shares[3] == pytest.approx(math.exp(-0.5))


def test_the_recipe_is_the_authors_for_few_shots() -> None:
    plan = PromptSRC().plan(16, 752)
    assert (plan.iterations, plan.batch_size, plan.drop_last) == (50 * 188, 4, True)
    assert (plan.schedule(0, 0.0), plan.schedule(1, 0.1)) == (1e-5, 0.0025)
    assert len(plan.epoch_shares) == 50


@pytest.mark.parametrize("settings", [{"image_weight": -1.0}, {"gpa_std": 0.0}, {"depth": 0}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        PromptSRC(**settings)
