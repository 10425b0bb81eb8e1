import copy
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.coop import CoOp

NAMES = ["cat", "long_haired dog", "zebra crossing", "b"]


def prompts(method: CoOp, encoder: Encoder) -> Any:
    """What `attach` builds; its only parameter is the context."""
    return method.attach(Clip.of(encoder), NAMES, ["{} texture."])


def naive_features(encoder: Encoder, method: CoOp, context: Tensor) -> Tensor:
    """The paper's prompts, each by itself, at all 77 positions, through open_clip's own tower."""
    model: Any = encoder.model
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    rows = []
    for k, name in enumerate(NAMES):
        ctx = context if context.ndim == 2 else context[k]
        tokens = tokenizer([name.replace("_", " ") + "."])[0]
        n_name = int(tokens.argmax()) - 2
        embedded = model.token_embedding(tokens)
        start, own, tail = embedded[:1], embedded[1 : 1 + n_name], embedded[1 + n_name :]
        half = len(ctx) // 2
        middle = {
            "end": [ctx, own],
            "middle": [ctx[:half], own, ctx[half:]],
            "front": [own, ctx],
        }[method.position]
        prompt = torch.cat([start, *middle, tail])[:77]
        x = (prompt + model.positional_embedding)[None]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        rows.append(x[0, int(tokens.argmax()) + len(ctx)] @ model.text_projection)
    return torch.stack(rows)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("chunk", [0, 3])
def test_loss_and_gradient_are_those_of_the_papers_forward_pass(
    encoder: Encoder, position: Any, class_specific: bool, chunk: int
) -> None:
    method = CoOp(n_ctx=5, position=position, class_specific=class_specific, text_chunk=chunk)
    learner = prompts(method, encoder)
    [context] = learner.parameters.values()
    theirs = context.detach().clone().requires_grad_()
    images = normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])

    loss, logits = learner.loss(images, labels)
    loss.backward()
    expected = learner.logit_scale * images @ normalize(naive_features(encoder, method, theirs)).T
    naive = cross_entropy(expected, labels)
    naive.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(context.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_the_context_begins_as_the_words_that_are_given(encoder: Encoder) -> None:
    worded = prompts(CoOp(ctx_init="a_photo_of_a", n_ctx=9), encoder)
    assert worded.parameters["context"].shape == (4, 8)
    tokens = encoder.tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    with torch.no_grad():
        stock = encoder.model.encode_text(tokens)
        torch.testing.assert_close(worded.text(), stock, rtol=1e-5, atol=2e-6)


def test_the_context_is_drawn_by_the_seed_at_the_published_deviation(encoder: Encoder) -> None:
    first, same, other = (
        prompts(CoOp(n_ctx=40, class_specific=True, seed=s), encoder).parameters["context"]
        for s in (1, 1, 2)
    )
    assert first.shape == (4, 40, 8)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert float(first.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_only_the_context_gets_a_gradient_and_the_encoder_stays_as_it_was(encoder: Encoder) -> None:
    before = copy.deepcopy(encoder.model.state_dict())
    clip = Clip.of(encoder)
    learner: Any = CoOp(n_ctx=2).attach(clip, NAMES, ["{}"])
    learner.loss(torch.ones(1, 16), torch.tensor([0]))[0].backward()
    assert learner.parameters["context"].grad is not None
    assert all(p.grad is None for p in clip.model.parameters())
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("shots", "n", "iterations"), [(1, 47, 50), (2, 94, 200), (4, 188, 500), (16, 752, 4600)]
)
def test_the_published_number_of_epochs_makes_so_many_steps(
    shots: int, n: int, iterations: int
) -> None:
    plan = CoOp().plan(shots, n)
    assert plan.iterations == iterations
    assert plan.drop_last
    assert plan.schedule(0, 0.0) == 1e-5
    assert plan.schedule(1, 0.1) == 0.002


def test_imagenet_has_fifty_epochs_at_any_shots() -> None:
    assert CoOp().plan(16, 16000).iterations == 50 * 500
    assert CoOp(epochs=3).plan(16, 16000).iterations == 3 * 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position": "back"}, "unknown position 'back'"),
        ({"n_ctx": 0}, "n_ctx must be a whole number, 1 or more; got 0"),
        ({"lr": -1.0}, "must be more than 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CoOp(**settings)
