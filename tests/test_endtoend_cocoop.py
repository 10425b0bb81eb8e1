from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.cocoop import CoCoOp, meta_net
from tests.naive_prompts import text_around

NAMES = ["cat", "long_haired dog", "zebra crossing", "b"]
LABELS = torch.tensor([0, 1, 2])


def images() -> Tensor:
    return 7 * torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


def naive_logits(encoder: Encoder, theirs: dict[str, Tensor], scale: float) -> Tensor:
    """The paper's: for every image a network's output on every vector of the context."""
    rows = []
    for image in normalize(images()):
        hidden = theirs["meta_net.linear1.weight"] @ image + theirs["meta_net.linear1.bias"]
        hidden = torch.where(hidden > 0, hidden, 0)
        shift = theirs["meta_net.linear2.weight"] @ hidden + theirs["meta_net.linear2.bias"]
        shifted = torch.stack([vector + shift for vector in theirs["context"]])
        rows.append(scale * text_around(encoder, shifted, NAMES) @ image)
    return torch.stack(rows)


@pytest.mark.parametrize(("ctx_init", "chunk"), [("a photo of a", 0), ("", 3)])
def test_loss_and_gradients_are_those_of_the_papers_forward_pass(
    encoder: Encoder, ctx_init: str, chunk: int
) -> None:
    method = CoCoOp(ctx_init=ctx_init, text_chunk=chunk, reduction=2)
    learner: Any = method.attach(Clip.of(encoder), NAMES, ["{} texture."])
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}

    loss, logits = learner.loss(images(), LABELS)
    loss.backward()
    expected = naive_logits(encoder, theirs, learner.logit_scale)
    naive = cross_entropy(expected, LABELS)
    naive.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    for name, parameter in learner.parameters.items():
        assert float(parameter.grad.abs().max()) > 1e-2
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_an_image_s_logits_do_not_depend_on_those_beside_it(encoder: Encoder) -> None:
    learner: Any = CoCoOp().attach(Clip.of(encoder), NAMES, ["{}"])
    with torch.no_grad():
        together = learner.frozen().logits(images())
        alone = torch.cat([learner.logits(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.shape == (3, 4)
    assert not together.requires_grad


def test_what_is_trained_has_the_papers_shapes(encoder: Encoder) -> None:
    learner = CoCoOp().attach(Clip.of(encoder), NAMES, ["{}"])
    assert {name: tuple(value.shape) for name, value in learner.parameters.items()} == {
        "context": (4, 8),
        "meta_net.linear1.weight": (1, 16),
        "meta_net.linear1.bias": (1,),
        "meta_net.linear2.weight": (8, 1),
        "meta_net.linear2.bias": (8,),
    }
    assert all(isinstance(value, nn.Parameter) for value in learner.parameters.values())


def test_only_what_is_trained_gets_a_gradient(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    learner: Any = CoCoOp().attach(clip, NAMES, ["{}"])
    learner.loss(images(), LABELS)[0].backward()
    assert all(value.grad is not None for value in learner.parameters.values())
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_the_network_is_drawn_by_the_seed_as_torch_draws_a_linear_layer() -> None:
    first, same, other = (meta_net(512, 32, 512, seed=seed) for seed in (1, 1, 2))
    layers = {"linear1": nn.Linear(512, 32), "linear2": nn.Linear(32, 512)}
    for name, value in first.items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])
        _, layer, part = name.split(".")
        torchs = getattr(layers[layer], part)
        assert value.shape == torchs.shape
        bound = (512 if layer == "linear1" else 32) ** -0.5
        assert 0.8 * bound < float(value.abs().max()) <= bound
        if part == "weight":
            assert float(value.std()) == pytest.approx(float(torchs.detach().std()), rel=0.05)
            assert float(value.mean()) == pytest.approx(0, abs=0.05 * bound)


def test_the_recipe_is_the_authors() -> None:
    plan = CoCoOp().plan(16, 1616)
    assert plan.iterations == 16160
    assert plan.batch_size == 1
    assert plan.schedule(0, 0.0) == 1e-5
    assert plan.schedule(1, 0.1) == 0.002
    assert CoCoOp(batch_size=4).plan(1, 10).iterations == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 0}, "reduction must be a whole number, 1 or more; got 0"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"lr": -1.0}, "must be more than 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CoCoOp(**settings)
