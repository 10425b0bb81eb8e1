from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, gelu, layer_norm, linear, normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.dtl import DTL
from fewshot.endtoend.methods.lst import LST
from fewshot.endtoend.methods.side_tuning import SideTuning
from fewshot.endtoend.methods.vqt import VQT
from fewshot.endtoend.parts.peft import PEFTMethod
from tests.image_peft import (
    LABELS,
    NAMES,
    TEMPLATES,
    Naive,
    Parameters,
    assert_learns_as,
    assert_starts_as_zero_shot,
    assert_trains_what_it_declares,
    attached,
    attend,
    count_on_vit_b16,
    feed,
    naive_feature,
    naive_tokens,
    pixels,
)


def layer(parameters: Parameters, path: str, x: Tensor) -> Tensor:
    return linear(x, parameters[f"{path}.weight"], parameters[f"{path}.bias"])


def normed(parameters: Parameters, path: str, x: Tensor) -> Tensor:
    weight, bias = parameters[f"{path}.weight"], parameters[f"{path}.bias"]
    return layer_norm(x, x.shape[-1:], weight, bias)


def lst(heads: int) -> Naive:
    """One block after another, one head after another; without heads of the class token alone."""

    def feature(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
        x = naive_tokens(model, image)
        h = torch.zeros(0)
        for i, block in enumerate(model.visual.transformer.resblocks):
            x = x + attend(block, block.ln_1(x))
            x = x + feed(block, x)
            low = layer(parameters, f"downs.{i}", x if heads else x[:1])
            if i:
                mu = 1 / (1 + torch.exp(-parameters["gates"][i - 1] / 0.1))
                low = mu * low + (1 - mu) * h
            h, path = low, f"blocks.{i}"
            if heads:
                n = normed(parameters, f"{path}.ln_1", h)
                q, k, v = (
                    layer(parameters, f"{path}.attn.{m}_proj", n).view(len(n), heads, -1)
                    for m in "qkv"
                )
                mixed = [
                    (q[:, j] @ k[:, j].T / q.shape[2] ** 0.5).softmax(dim=1) @ v[:, j]
                    for j in range(heads)
                ]
                h = h + layer(parameters, f"{path}.attn.out_proj", torch.cat(mixed, dim=1))
            hidden = gelu(layer(parameters, f"{path}.mlp.0", normed(parameters, f"{path}.ln_2", h)))
            h = h + layer(parameters, f"{path}.mlp.2", hidden)
        up = layer(parameters, "up", normed(parameters, "norm", h))
        return naive_feature(model, x[:1] + up[:1])

    return feature


def dtl(writes: set[int], kernel: int) -> Naive:
    def feature(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
        x = naive_tokens(model, image)
        r = torch.zeros_like(x)
        for i, block in enumerate(model.visual.transformer.resblocks):
            r = r + (x @ parameters["A"][i].T) @ parameters["B"][i].T
            x = x + attend(block, block.ln_1(x))
            x = x + feed(block, x)
            if i in writes:
                swish = r / (1 + torch.exp(-3.0 * r))
                if kernel:
                    grid = swish[1:].view(2, 2, -1).permute(2, 0, 1)[None]
                    weight = parameters["conv.weight"]
                    grid = conv2d(grid, weight, padding=kernel // 2, groups=len(weight))
                    swish = torch.cat([swish[:1], grid[0].permute(1, 2, 0).reshape(4, -1)])
                x = x + swish
        return naive_feature(model, x)

    return feature


def side_tuning(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    x = image[None]
    for i in range(3):
        weight, bias = parameters[f"convs.{i}.weight"], parameters[f"convs.{i}.bias"]
        x = conv2d(x, weight, bias, stride=2, padding=1)
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        gain, offset = parameters[f"norms.{i}.weight"], parameters[f"norms.{i}.bias"]
        x = torch.relu(x * gain[:, None, None] + offset[:, None, None])
    side = layer(parameters, "out", x.mean(dim=(2, 3))[0])
    base = model.encode_image(image[None])[0]
    a = 1 / (1 + torch.exp(-parameters["alpha"]))
    blended: Tensor = a * base / base.norm() + (1 - a) * side
    return blended


METHODS: list[tuple[PEFTMethod, Naive]] = [
    (LST(reduction=8), lst(heads=1)),
    (LST(reduction=8, seen="cls"), lst(heads=0)),
    (DTL(beta=3.0), dtl({1}, 0)),
    (DTL(beta=3.0, writes="all", rank=3, kernel=3), dtl({0, 1}, 3)),
]


@pytest.mark.parametrize(("method", "naive"), METHODS)
def test_features_and_gradients_are_those_of_the_papers_formula(
    encoder: Encoder, method: PEFTMethod, naive: Naive
) -> None:
    assert_learns_as(encoder, method, naive, moved=0.1)


@pytest.mark.parametrize("method", [*(method for method, _ in METHODS)])
def test_before_training_it_is_zero_shot_clip(encoder: Encoder, method: PEFTMethod) -> None:
    assert_starts_as_zero_shot(encoder, method)


@pytest.mark.parametrize(
    "method", [*(method for method, _ in METHODS), VQT(n_tokens=2), SideTuning()]
)
def test_it_trains_what_it_declares_and_nothing_else(encoder: Encoder, method: PEFTMethod) -> None:
    assert_trains_what_it_declares(encoder, method)


def test_side_tuning_blends_the_feature_with_that_of_a_network_of_the_pixels(
    encoder: Encoder, random_resnet: Path
) -> None:
    method = SideTuning(channels=5, layers=3)
    for at_hand in (encoder, load(f"local-dir:{random_resnet}", device="cpu")):
        assert_learns_as(at_hand, method, side_tuning)
        _, start = attached(at_hand, method)
        assert start.images is not None
        with torch.no_grad():
            ours = normalize(start.images(pixels()), dim=1)
            theirs = normalize(at_hand.model.encode_image(pixels()), dim=1)
        torch.testing.assert_close(ours, theirs)


def naive_vqt_logits(encoder: Encoder, learner: Any, parameters: Parameters) -> Tensor:
    """The answers, one image, block and query at a time, from open_clip's own attention."""
    model: Any = encoder.model
    text = normalize(learner.text().detach(), dim=1)
    rows = []
    for image in pixels():
        x = naive_tokens(model, image)
        answers = []
        for queries, block in zip(
            parameters["queries"], model.visual.transformer.resblocks, strict=True
        ):
            for query in queries:
                q, n = block.ln_1(query)[None], block.ln_1(x)
                z = query + block.attn(q, n, n, need_weights=False)[0][0]
                z = z + feed(block, z)
                answers.append(z / z.norm())
            x = x + attend(block, block.ln_1(x))
            x = x + feed(block, x)
        cosines = text @ normalize(naive_feature(model, x), dim=0)
        rows.append(learner.logit_scale * cosines + parameters["V"] @ torch.cat(answers))
    return torch.stack(rows)


def test_vqt_s_logits_and_gradients_are_those_of_its_formula(encoder: Encoder) -> None:
    _, learner = attached(encoder, VQT(n_tokens=3), moved=0.3)
    assert learner.images is not None
    theirs = {k: v.detach().clone().requires_grad_() for k, v in learner.parameters.items()}
    loss, logits = learner.loss(learner.images(pixels()), LABELS)
    loss.backward()  # type: ignore[no-untyped-call]
    expected = naive_vqt_logits(encoder, learner, theirs)
    cross_entropy(expected, LABELS).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in learner.parameters.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_before_training_vqt_classifies_as_zero_shot_clip(encoder: Encoder) -> None:
    _, learner = attached(encoder, VQT())
    _, bare = attached(encoder, DTL())
    assert learner.images is not None
    assert bare.images is not None
    with torch.no_grad():
        ours = learner.frozen().logits(learner.images(pixels()))
        torch.testing.assert_close(ours, bare.logits(bare.images(pixels())), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "n"),
    [
        (LST(), 2_302_475 + 2 * 96),  # the published 2.3M, and the layer norm before the last layer
        (LST(seen="cls"), 2_302_475 + 2 * 96 - 12 * (4 * 96 * 97 + 2 * 96)),
        (VQT(), 9_216),
        (VQT(n_tokens=10), 92_160),
        (DTL(), 36_864),
        (DTL(kernel=5), 36_864 + 768 * 25),
        (DTL(rank=4), 73_728),
    ],
)
def test_a_vit_b16_gets_as_many_parameters_as_published(method: PEFTMethod, n: int) -> None:
    assert count_on_vit_b16(method) == n


def test_vqt_s_classifier_has_a_column_for_each_answer(encoder: Encoder) -> None:
    _, learner = attached(encoder, VQT(n_tokens=3))
    assert {name: tuple(p.shape) for name, p in learner.parameters.items()} == {
        "queries": (2, 3, 64),
        "V": (3, 2 * 3 * 64),
    }


def test_no_gradient_goes_through_the_tower_beside_a_ladder(encoder: Encoder) -> None:
    clip, learner = attached(encoder, LST(reduction=8))
    assert learner.images is not None
    needed = []
    for block in clip.model.visual.transformer.resblocks:
        block.register_forward_hook(lambda m, args, out: needed.append(out.requires_grad))
    learner.images(pixels())
    assert needed == [False, False]


@pytest.mark.parametrize("build", [LST, VQT, DTL, SideTuning])
def test_the_seed_alone_draws_the_start(encoder: Encoder, build: Callable[..., PEFTMethod]) -> None:
    before = torch.get_rng_state()
    first, same, other = (attached(encoder, build(seed=s))[1].parameters for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("build", [LST, VQT, DTL])
def test_a_resnet_is_refused_by_name(random_resnet: Path, build: Callable[..., PEFTMethod]) -> None:
    clip = Clip.of(load(f"local-dir:{random_resnet}", device="cpu"))
    method = build()
    with pytest.raises(UserError, match=f"{method.name} needs the blocks of a vision transformer"):
        method.attach(clip, NAMES, TEMPLATES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LST(reduction=0), "reduction must be a whole number, 1 or more"),
        (lambda: LST(temperature=0), "temperature must be more than 0"),
        (lambda: LST(seen="some"), "unknown seen 'some'"),  # type: ignore[arg-type]
        (lambda: LST(towers="both"), "lst changes the image tower only"),
        (lambda: VQT(n_tokens=0), "n_tokens must be a whole number, 1 or more"),
        (lambda: VQT(towers="both"), "vqt changes the image tower only"),
        (lambda: DTL(rank=0), "rank must be a whole number, 1 or more"),
        (lambda: DTL(kernel=-1), "kernel must be a whole number, 0 or more"),
        (lambda: DTL(kernel=2), "kernel must be odd, .*; got 2"),
        (lambda: DTL(towers="text"), "dtl changes the image tower only"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], PEFTMethod], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_a_ladder_that_does_not_fit_the_tower_is_refused(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="reduction must leave the tower's 1 heads"):
        attached(encoder, LST(reduction=65))
    clip = Clip.of(encoder)
    clip.model.visual.pool_type = "avg"
    with pytest.raises(UserError, match="does not pool by its class token"):
        LST(seen="cls").attach(clip, NAMES, TEMPLATES)
