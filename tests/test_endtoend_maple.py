from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear, normalize

from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.maple import MaPLe, coupling
from tests.image_peft import LABELS, NAMES, TEMPLATES, pixels
from tests.naive_deep_prompts import deep_image, deep_text


@pytest.mark.parametrize(
    ("method", "words"), [(MaPLe(), "of a"), (MaPLe(ctx_init="", n_ctx=3, text_chunk=2), "")]
)
def test_loss_and_gradients_are_those_of_the_published_code_on_77_tokens(
    encoder: Encoder, method: MaPLe, words: str
) -> None:
    learner: Any = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()

    context, deeper = theirs["context"], theirs["text_prompts"]
    maps = zip(theirs["coupling.weight"], theirs["coupling.bias"], strict=True)
    tokens = [linear(p, w, b) for p, (w, b) in zip([context, *deeper], maps, strict=True)]
    images = torch.stack([deep_image(encoder.model, tokens, image) for image in pixels()])
    text = deep_text(encoder, context, deeper, NAMES, words)
    expected = learner.logit_scale * normalize(images, dim=1) @ normalize(text, dim=1).T
    naive = cross_entropy(expected, LABELS)
    naive.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    for name, parameter in learner.parameters.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def test_the_maps_are_as_many_as_published_and_all_but_the_first_start_alike() -> None:
    weight, bias = coupling(9, 512, 768, torch.Generator().manual_seed(0))
    prompts = 9 * 2 * 512
    assert weight.numel() + bias.numel() + prompts == 3_555_072
    assert torch.equal(weight[1], weight[8])
    assert torch.equal(bias[1], bias[8])
    assert not torch.equal(weight[0], weight[1])
    assert float(weight.abs().max()) == pytest.approx(512**-0.5, rel=0.01)


def test_the_recipe_is_the_authors() -> None:
    plan = MaPLe().plan(16, 752)
    assert (plan.iterations, plan.batch_size, plan.drop_last) == (5 * 188, 4, True)
    assert (plan.schedule(0, 0.0), plan.schedule(1, 0.2)) == (1e-5, 0.0035)
    assert not plan.epoch_shares
