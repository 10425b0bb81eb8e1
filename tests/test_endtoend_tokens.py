from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear
from torch.optim import SGD, AdamW

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.ett import ETT
from fewshot.endtoend.methods.evp import EVP
from fewshot.endtoend.methods.patt import PATT
from fewshot.endtoend.methods.prefix import Prefix
from fewshot.endtoend.methods.visual_prompt import VisualPrompt
from fewshot.endtoend.methods.vpt import VPTDeep, VPTShallow
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
    parameters_on_vit_b16,
    pixels,
)

BLOCK = "visual.transformer.resblocks"


def vpt_shallow(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    x = naive_tokens(model, image)
    x = torch.cat([x[:1], parameters["tokens"][0], x[1:]])
    for block in model.visual.transformer.resblocks:
        x = x + attend(block, block.ln_1(x))
        x = x + feed(block, x)
    return naive_feature(model, x)


def vpt_deep(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    x = naive_tokens(model, image)
    first, patches = x[:1], x[1:]
    for learned, block in zip(
        parameters["tokens"], model.visual.transformer.resblocks, strict=True
    ):
        x = torch.cat([first, learned, patches])
        x = x + attend(block, block.ln_1(x))
        x = x + feed(block, x)
        first, patches = x[:1], x[1 + len(learned) :]
    return naive_feature(model, x)


def naive_attention(block: Any, tokens: Tensor, alter: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Heads one by one; `alter` makes keys (1) and values (2) of what the matrices give."""
    attention = block.attn
    width, heads = tokens.shape[1], attention.num_heads
    parts = []
    for i in range(3):
        rows = slice(i * width, (i + 1) * width)
        part = linear(tokens, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        parts.append((part if i == 0 else alter(part, i)).view(-1, heads, width // heads))
    mixed = []
    for h in range(heads):
        q, k, v = (part[:, h] for part in parts)
        mixed.append((q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v)
    return linear(torch.cat(mixed, 1), attention.out_proj.weight, attention.out_proj.bias)


def prefix(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    x = naive_tokens(model, image)
    for i, block in enumerate(model.visual.transformer.resblocks):

        def alter(part: Tensor, which: int, i: int = i) -> Tensor:
            learned = parameters[f"{BLOCK}.{i}.attn.{'qkv'[which]}_proj.prefix"]
            return torch.cat([learned, part])

        x = x + naive_attention(block, block.ln_1(x), alter)
        x = x + feed(block, x)
    return naive_feature(model, x)


def ett(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    x = naive_tokens(model, image)
    down = parameters["hidden.down.weight"], parameters["hidden.down.bias"]
    hidden = linear(parameters["hidden.prototypes"], *down).tanh()
    for i, block in enumerate(model.visual.transformer.resblocks):

        def alter(part: Tensor, which: int, i: int = i) -> Tensor:
            up = f"{BLOCK}.{i}.attn.{'qkv'[which]}_proj.up"
            learned = linear(hidden, parameters[f"{up}.weight"], parameters[f"{up}.bias"])
            return torch.cat([learned, part])

        x = x + naive_attention(block, block.ln_1(x), alter)
        x = x + feed(block, x)
    return naive_feature(model, x)


def patt(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    x = naive_tokens(model, image)
    for i, block in enumerate(model.visual.transformer.resblocks):
        normed = block.ln_1(x)

        def alter(part: Tensor, which: int, i: int = i, normed: Tensor = normed) -> Tensor:
            path = f"{BLOCK}.{i}.attn"
            down = parameters[f"{path}.down.weight"], parameters[f"{path}.down.bias"]
            up = f"{path}.{'qkv'[which]}_proj"
            hidden = linear(normed, *down).tanh()
            return part + 0.3 * linear(hidden, parameters[f"{up}.weight"], parameters[f"{up}.bias"])

        x = x + naive_attention(block, normed, alter)
        x = x + feed(block, x)
    return naive_feature(model, x)


def visual_prompt(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    rows = []
    for y in range(32):
        if y < 4:
            row = parameters["top"][:, y]
        elif y >= 28:
            row = parameters["bottom"][:, y - 28]
        else:
            nothing = torch.zeros(3, 24)
            left, right = parameters["left"][:, y - 4], parameters["right"][:, y - 4]
            row = torch.cat([left, nothing, right], dim=1)
        rows.append(row)
    feature: Tensor = model.encode_image((image + torch.stack(rows, dim=1))[None])[0]
    return feature


def evp(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(model.visual.preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std")
    )
    canvas = torch.zeros(3, 32, 32)  # of values from 0 to 1
    small = interpolate((image * std + mean)[None], (24, 24), mode="bicubic", antialias=True)[0]
    for y in range(32):
        for x in range(32):
            if y < 4:
                canvas[:, y, x] = parameters["top"][:, y, x]
            elif y >= 28:
                canvas[:, y, x] = parameters["bottom"][:, y - 28, x]
            elif x < 4:
                canvas[:, y, x] = parameters["left"][:, y - 4, x]
            elif x >= 28:
                canvas[:, y, x] = parameters["right"][:, y - 4, x - 28]
            else:
                canvas[:, y, x] = small[:, y - 4, x - 4]
    feature: Tensor = model.encode_image(((canvas - mean) / std)[None])[0]
    return feature


METHODS: list[tuple[PEFTMethod, Naive]] = [
    (VPTShallow(n_tokens=3), vpt_shallow),
    (VPTDeep(n_tokens=3), vpt_deep),
    (Prefix(n_tokens=3), prefix),
    (ETT(), ett),
    (PATT(dim=5, scale=0.3), patt),
    (VisualPrompt(), visual_prompt),
    (EVP(), evp),
]


@pytest.mark.parametrize(("method", "naive"), METHODS)
def test_features_and_gradients_are_those_of_the_papers_formula(
    encoder: Encoder, method: PEFTMethod, naive: Naive
) -> None:
    assert_learns_as(encoder, method, naive)


@pytest.mark.parametrize("method", [method for method, _ in METHODS])
def test_it_trains_what_it_declares_and_nothing_else(encoder: Encoder, method: PEFTMethod) -> None:
    assert_trains_what_it_declares(encoder, method)


def test_before_training_patt_is_zero_shot_clip(encoder: Encoder) -> None:
    assert_starts_as_zero_shot(encoder, PATT())


@pytest.mark.parametrize(
    ("method", "n"),
    [
        (VPTShallow(), 7_680),
        (VPTDeep(), 92_160),
        (VPTDeep(n_tokens=50), 460_800),
        (Prefix(), 184_320),
        (Prefix(position="bottom"), 61_440),
        (PATT(), 12 * (768 * 64 + 64 + 2 * (64 * 768 + 768))),
        (VisualPrompt(), 69_840),
        (VisualPrompt(pad=10), 25_680),
    ],
)
def test_a_vit_b16_gets_as_many_parameters_as_published(method: PEFTMethod, n: int) -> None:
    assert count_on_vit_b16(method) == n


def test_ett_learns_a_prototype_of_each_class_and_projections_in_every_block(
    encoder: Encoder,
) -> None:
    _, learner = attached(encoder, ETT())
    prototypes = learner.parameters["hidden.prototypes"]
    (classes, width), layers = prototypes.shape, len(encoder.model.visual.transformer.resblocks)
    half = width // 2
    expected = classes * width + (width * half + half) + 2 * layers * (half * width + width)
    assert sum(parameter.numel() for parameter in learner.parameters.values()) == expected


def test_etts_prototypes_are_patches_that_the_last_block_attends_to(encoder: Encoder) -> None:
    _, learner = attached(encoder, ETT())
    drawn = learner.parameters["hidden.prototypes"].detach().clone()
    assert learner.calibrate is not None
    learner.calibrate(torch.split(pixels(), 3), LABELS)
    model: Any = encoder.model
    of_images = []
    with torch.no_grad():
        for image in pixels():
            x = first = naive_tokens(model, image)
            *blocks, last = model.visual.transformer.resblocks
            for block in blocks:
                x = x + attend(block, block.ln_1(x))
                x = x + feed(block, x)
            weights, bias = last.attn.in_proj_weight.chunk(3), last.attn.in_proj_bias.chunk(3)
            q, k = (linear(last.ln_1(x), weights[j], bias[j]) for j in (0, 1))
            heads = last.attn.num_heads
            width = q.shape[1] // heads
            shares = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                shares.append((k[1:, part] @ q[0, part] / width**0.5).softmax(dim=0))
            of_images.append(torch.stack(shares).mean(dim=0) @ first[1:])
    means = [of_images[0], (of_images[1] + of_images[3]) / 2, of_images[2]]
    started = learner.parameters["hidden.prototypes"].detach()
    torch.testing.assert_close(started, torch.stack(means), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(started, drawn)


def test_vpt_draws_from_its_range(encoder: Encoder) -> None:
    tokens = parameters_on_vit_b16(VPTDeep(n_tokens=50))["tokens"]
    assert tokens.shape == (12, 50, 768)
    _, learner = attached(encoder, VPTDeep(n_tokens=50))
    tokens = learner.parameters["tokens"]
    assert tokens.shape == (2, 50, 64)
    bound = (6 / (3 * 16 * 16 + 64)) ** 0.5
    assert 0.99 * bound < float(tokens.detach().abs().max()) < bound
    assert float(tokens.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_border_and_the_prefix_have_their_deviations(encoder: Encoder) -> None:
    _, learner = attached(encoder, VisualPrompt(pad=10))
    assert float(learner.parameters["top"].detach().std()) == pytest.approx(1, rel=0.1)
    _, learner = attached(encoder, Prefix(n_tokens=50))
    for parameter in learner.parameters.values():
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("build", [VPTShallow, VPTDeep, Prefix, ETT, PATT, VisualPrompt])
def test_the_seed_alone_draws_the_start(encoder: Encoder, build: Callable[..., PEFTMethod]) -> None:
    before = torch.get_rng_state()
    first, same, other = (attached(encoder, build(seed=s))[1].parameters for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_dropout_takes_prompt_tokens_in_training_alone(encoder: Encoder) -> None:
    _, learner = attached(encoder, VPTDeep(dropout=0.5))
    assert learner.images is not None
    with torch.no_grad():
        rest = learner.images(pixels())
        assert torch.equal(learner.images(pixels()), rest)
        for module in learner.modules:
            module.train()
        assert not torch.allclose(learner.images(pixels()), rest)


def test_tokens_for_the_average_of_the_patches_are_gone_behind_the_last_block(
    encoder: Encoder,
) -> None:
    clip, learner = attached(encoder, VPTDeep(n_tokens=3))
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    assert clip.model.visual.transformer(x).shape == (2, 5, 64)
    clip.model.visual.pool_type = "avg"
    assert learner.images is not None
    assert learner.images(pixels()).shape == (4, 16)


def test_patt_takes_the_text_tower_too(encoder: Encoder) -> None:
    _, learner = attached(encoder, PATT(dim=5, towers="both"), moved=0.2)
    assert learner.images is not None
    learner.loss(learner.images(pixels()), LABELS)[0].backward()  # type: ignore[no-untyped-call]
    assert sum(name.startswith("transformer.") for name in learner.parameters) == 12
    assert all(p.grad is not None for p in learner.parameters.values())


def test_a_resnet_takes_a_border_and_nothing_else(random_resnet: Path) -> None:
    resnet = load(f"local-dir:{random_resnet}", device="cpu")
    for build in (VPTShallow, VPTDeep, Prefix, PATT):
        method = build()
        with pytest.raises(UserError, match=f"{method.name} needs the blocks of a vision transf"):
            method.attach(Clip.of(resnet), NAMES, TEMPLATES)
    assert_learns_as(resnet, VisualPrompt(), visual_prompt)


def test_a_border_is_trained_by_sgd_and_the_rest_as_clip_lora(encoder: Encoder) -> None:
    method = VisualPrompt()
    optimizer = method.optimizer(attached(encoder, method)[1])
    assert isinstance(optimizer, SGD)
    assert optimizer.defaults["lr"] == 1  # the published 40 falls below zero-shot on few shots
    assert optimizer.defaults["momentum"] == 0.9
    assert method.plan(2, 6).schedule(0, 0.0) == pytest.approx(1)
    assert isinstance(VPTDeep().optimizer(attached(encoder, VPTDeep())[1]), AdamW)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VPTShallow(n_tokens=0), "n_tokens must be a whole number, 1 or more"),
        (lambda: VPTDeep(dropout=1.0), "dropout must be 0 or more and less than 1"),
        (lambda: VPTDeep(towers="text"), "vpt-deep changes the image tower only"),
        (lambda: Prefix(n_tokens=0), "n_tokens must be a whole number, 1 or more"),
        (lambda: Prefix(towers="both"), "prefix changes the image tower only"),
        (lambda: PATT(dim=0), "dim must be a whole number, 1 or more"),
        (lambda: VisualPrompt(pad=-1), "pad must be a whole number, 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], PEFTMethod], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_a_border_that_leaves_nothing_of_the_image_is_refused(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="pad must be less than half of an image's 32 x 32; got 16"):
        attached(encoder, VisualPrompt(pad=16))


def test_a_step_of_normalized_gradients_is_as_long_as_the_learning_rate(encoder: Encoder) -> None:
    _, learner = attached(encoder, EVP())
    assert learner.images is not None
    assert all(not parameter.any() for parameter in learner.parameters.values())  # black
    optimizer = EVP(lr=3.0).optimizer(learner)
    learner.loss(learner.images(pixels()), LABELS)[0].backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat(
        [p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]
    )
    optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in learner.parameters.values()])
    torch.testing.assert_close(moved, -3.0 * gradient / gradient.norm())
