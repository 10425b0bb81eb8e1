from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.plot_plus_plus import PLOTPlusPlus
from tests.image_peft import LABELS, NAMES, TEMPLATES, pixels
from tests.naive_deep_prompts import deep_image
from tests.naive_prompts import text_around
from tests.naive_transport import naive_plans


@pytest.mark.parametrize("first_half", [True, False])
def test_loss_and_gradients_are_those_of_the_published_code_on_77_tokens(
    encoder: Encoder, first_half: bool
) -> None:
    method = PLOTPlusPlus(n_sets=3, ctx_init="a photo of a|this is")
    learner: Any = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    learner.stage(4 if first_half else 5, 10)
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()

    contexts = [theirs["context.0"], theirs["context.1"]]
    assert [len(one) for one in contexts] == [4, 2]
    text = torch.stack([text_around(encoder, one, NAMES) for one in contexts])  # (N, C, D)
    rows = []
    for image in pixels():
        seen = torch.stack([deep_image(encoder.model, [s], image) for s in theirs["tokens"]])
        cosines = torch.stack([normalize(seen, dim=1) @ text[:, k].T for k in range(len(NAMES))])
        plans = naive_plans(cosines.detach())
        row = torch.stack([(p * s).sum() for p, s in zip(plans, cosines, strict=True)])
        if first_half:
            row = row + cosine_similarity(seen.mean(dim=0)[None], learner.text().mean(dim=0))
        rows.append(row)
    expected = learner.logit_scale * torch.stack(rows)
    naive = cross_entropy(expected, LABELS)
    naive.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss, naive, rtol=1e-4, atol=1e-4)
    for name, parameter in learner.parameters.items():
        if first_half and name != "tokens":
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def test_a_learner_that_was_not_trained_here_is_past_the_first_half(encoder: Encoder) -> None:
    learner: Any = PLOTPlusPlus(n_sets=2).attach(Clip.of(encoder), NAMES, TEMPLATES)
    with torch.no_grad():
        features = learner.images(pixels())
        assert features.shape == (4, 2, 16)
        logits = learner.logits(features)
        learner.stage(1, 2)
        assert torch.equal(learner.logits(features), logits)
        learner.stage(0, 2)
        assert not torch.allclose(learner.logits(features), logits, atol=1e-3)


def test_the_recipe_is_the_authors_in_either_half() -> None:
    plan = PLOTPlusPlus().plan(16, 752)
    assert (plan.iterations, plan.batch_size) == (2 * 50 * 23, 32)
    assert [plan.schedule(epoch, 0.0) for epoch in (0, 1, 50, 51)] == [1e-5, 0.002, 1e-5, 0.002]


@pytest.mark.parametrize("settings", [{"n_sets": 0}, {"n_tokens": 0}, {"ctx_init": "a photo||"}])
def test_what_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        PLOTPlusPlus(**settings)
