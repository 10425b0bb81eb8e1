from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, linear

from cache.datasets.resolving import resolve_folder
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.experiment import run
from fewshot.endtoend.methods.adapterbias import AdapterBias
from fewshot.endtoend.methods.adaptformer import AdaptFormer
from fewshot.endtoend.methods.convpass import Convpass
from fewshot.endtoend.methods.houlsby import Houlsby
from fewshot.endtoend.methods.inner_clip_adapter import InnerCLIPAdapter
from fewshot.endtoend.methods.lorand import LoRand
from fewshot.endtoend.methods.sct import SCT, ChannelSubset
from fewshot.endtoend.methods.u_tuning import UTuning
from fewshot.endtoend.parts.peft import PEFTMethod
from fewshot.sampling import draw
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
METHODS: list[PEFTMethod] = [
    AdaptFormer(dim=5),
    AdaptFormer(dim=5, learned_scale=True, scale=0.7),
    Houlsby(dim=5),
    LoRand(rank=3),
    UTuning(dim=5),
    Convpass(dim=3),
    AdapterBias(),
    SCT(channels=7),
    SCT(channels=7, after="mlp"),
]


Step = Callable[[Any, int, Any, Tensor], Tensor]  # get parameter, number, block, tokens -> tokens


def naive(step: Step) -> Naive:
    """An image tower whose blocks are replaced by the step."""

    def feature(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
        x = naive_tokens(model, image)
        for i, block in enumerate(model.visual.transformer.resblocks):
            x = step(lambda name, i=i: parameters[f"{BLOCK}.{i}.{name}"], i, block, x)
        return naive_feature(model, x)

    return feature


def two_layers(get: Any, path: str, x: Tensor, activation: Any) -> Tensor:
    hidden = activation(linear(x, get(f"{path}.down.weight"), get(f"{path}.down.bias")))
    return linear(hidden, get(f"{path}.up.weight"), get(f"{path}.up.bias"))


def adaptformer(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    x = x + attend(block, block.ln_1(x))
    return x + feed(block, x) + 0.1 * two_layers(get, "mlp.core", x, torch.relu)


def adaptformer_with_learned_scale(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    x = x + attend(block, block.ln_1(x))
    branch = two_layers(get, "mlp.core", x, torch.relu)
    scale: Tensor = get("mlp.scale")
    return x + feed(block, x) + scale * branch


def houlsby(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    h = attend(block, block.ln_1(x))
    x = x + h + two_layers(get, "attn.core", h, gelu)
    h = feed(block, x)
    return x + h + two_layers(get, "mlp.core", h, gelu)


def lorand(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    def adapted(half: str, h: Tensor) -> Tensor:
        def matrix(which: str) -> Tensor:
            Q, K, P = (get(f"{half}.core.{name}") for name in (f"{which}_Q", "K", f"{which}_P"))
            return sum((Q[a] @ K[a] @ P[a] for a in range(2)), torch.zeros(()))

        middle = gelu(h @ matrix("down") + get(f"{half}.core.down_bias"))
        out: Tensor = middle @ matrix("up") + get(f"{half}.core.up_bias")
        return out

    h = attend(block, block.ln_1(x))
    x = x + h + adapted("attn", h)
    h = feed(block, x)
    return x + h + adapted("mlp", h)


def u_tuning(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    n = block.ln_1(x)
    x = x + attend(block, n) + 0.3 * two_layers(get, "attn.core", n, gelu)
    return x + feed(block, x) + 0.3 * two_layers(get, "mlp.core", block.ln_2(x), gelu)


def u_tuning_of_blocks(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    out = x + attend(block, block.ln_1(x))
    return out + feed(block, out) + 0.3 * two_layers(get, "block.core", x, gelu)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def convolved(get: Any, path: str, x: Tensor) -> Tensor:
    low = quick_gelu(linear(x, get(f"{path}.down.weight"), get(f"{path}.down.bias")))
    kernel, bias = get(f"{path}.conv.weight"), get(f"{path}.conv.bias")
    first = low[0] @ kernel[:, :, 1, 1].T + bias
    grid = low[1:].view(2, 2, -1).permute(2, 0, 1)  # 32 x 32 pixels in patches of 16
    patches = conv2d(grid[None], kernel, bias, padding=1)[0].permute(1, 2, 0).reshape(4, -1)
    mixed = quick_gelu(torch.cat([first[None], patches]))
    return linear(mixed, get(f"{path}.up.weight"), get(f"{path}.up.bias"))


def convpass(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    n = block.ln_1(x)
    x = x + attend(block, n) + 0.3 * convolved(get, "attn.core", n)
    n = block.ln_2(x)
    return x + feed(block, x) + 0.3 * convolved(get, "mlp.core", n)


def adapterbias(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    x = x + attend(block, block.ln_1(x))
    h = feed(block, x)
    alpha = h @ get("mlp.core.gate.weight")[0] + get("mlp.core.gate.bias")
    return x + h + torch.outer(alpha, get("mlp.core.v"))


def add_to_first(get: Any, path: str, x: Tensor) -> Tensor:
    part = x[:, :7]
    mapped = linear(part, get(f"{path}.map.weight"), get(f"{path}.map.bias"))
    return torch.cat([part + 2.0 * mapped, x[:, 7:]], dim=1)


def sct_attn(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    x = add_to_first(get, "attn.core", x + attend(block, block.ln_1(x)))
    return x + feed(block, x)


def sct_mlp(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    x = x + attend(block, block.ln_1(x))
    return add_to_first(get, "mlp.core", x + feed(block, x))


def inner_clip_adapter(get: Any, i: int, block: Any, x: Tensor) -> Tensor:
    x = x + attend(block, block.ln_1(x))
    x = x + feed(block, x)
    if i != 0:
        return x
    hidden = linear(x, get("mlp.core.down.weight")).relu()
    adapted = linear(hidden, get("mlp.core.up.weight")).relu()
    return 0.3 * adapted + 0.7 * x


@pytest.mark.parametrize(
    ("method", "step"),
    [
        (AdaptFormer(dim=5), adaptformer),
        (
            AdaptFormer(dim=5, learned_scale=True, scale=0.7),
            adaptformer_with_learned_scale,
        ),
        (Houlsby(dim=5), houlsby),
        (LoRand(rank=3), lorand),
        (UTuning(dim=5, scale=0.3), u_tuning),
        (UTuning(dim=5, scale=0.3, operation="block"), u_tuning_of_blocks),
        (Convpass(dim=3, scale=0.3), convpass),
        (AdapterBias(), adapterbias),
        (SCT(channels=7, scale=2.0), sct_attn),
        (SCT(channels=7, scale=2.0, after="mlp"), sct_mlp),
        (InnerCLIPAdapter(block=1, ratio=0.3), inner_clip_adapter),
    ],
)
def test_features_and_gradients_are_those_of_the_papers_formula(
    encoder: Encoder, method: PEFTMethod, step: Step
) -> None:
    assert_learns_as(encoder, method, naive(step))


@pytest.mark.parametrize("method", METHODS)
def test_before_training_it_is_zero_shot_clip(encoder: Encoder, method: PEFTMethod) -> None:
    assert_starts_as_zero_shot(encoder, method)


@pytest.mark.parametrize("method", [*METHODS, InnerCLIPAdapter()])
def test_it_trains_what_it_declares_and_nothing_else(encoder: Encoder, method: PEFTMethod) -> None:
    assert_trains_what_it_declares(encoder, method)


@pytest.mark.parametrize(
    ("method", "n"),
    [
        (AdaptFormer(), 1_189_632),
        (AdaptFormer(dim=8), 156_768),
        (AdaptFormer(dim=8, learned_scale=True), 156_780),
        (AdaptFormer(dim=8, position="up"), 52_256),
        (Houlsby(), 2_379_264),
        (LoRand(), 24 * (4 * 8 * (768 + 384) + 2 * 8 * 8 + 768 + 384)),
        (UTuning(), 2_379_264),
        (UTuning(operation="mlp"), 1_189_632),
        (Convpass(), 327_552),
        (AdapterBias(), 18_444),
        (SCT(), 12_672),
        (SCT(channels=96), 111_744),
        (InnerCLIPAdapter(), 294_912),
    ],
)
def test_a_vit_b16_gets_as_many_parameters_as_published(method: PEFTMethod, n: int) -> None:
    assert count_on_vit_b16(method) == n


@pytest.mark.parametrize(("block", "expected"), [(0, 11), (12, 11), (2, 1)])
def test_the_inner_adapter_goes_behind_the_block_of_that_number(block: int, expected: int) -> None:
    names = list(parameters_on_vit_b16(InnerCLIPAdapter(block=block)))
    assert names == [f"{BLOCK}.{expected}.mlp.core.{x}.weight" for x in ("down", "up")]


@pytest.mark.parametrize("method", [AdaptFormer(dim=5, dropout=0.5), Convpass(dropout=0.5)])
def test_dropout_acts_in_training_alone(encoder: Encoder, method: PEFTMethod) -> None:
    _, learner = attached(encoder, method, moved=0.3)
    assert learner.images is not None
    with torch.no_grad():
        rest = learner.images(pixels())
        assert torch.equal(learner.images(pixels()), rest)
        for module in learner.modules:
            module.train()
        assert not torch.allclose(learner.images(pixels()), rest)


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: AdaptFormer(seed=seed),
        lambda seed: Convpass(seed=seed),
        lambda seed: AdapterBias(seed=seed),
    ],
)
def test_the_seed_alone_draws_the_start(
    encoder: Encoder, build: Callable[[int], PEFTMethod]
) -> None:
    before = torch.get_rng_state()
    first, same, other = (attached(encoder, build(s))[1].parameters for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("build", [AdaptFormer, Houlsby, AdapterBias])
def test_the_text_tower_takes_branches_too(
    encoder: Encoder, random_resnet: Path, build: Callable[..., PEFTMethod]
) -> None:
    resnet = load(f"local-dir:{random_resnet}", device="cpu")
    for at_hand, towers in ((encoder, "both"), (resnet, "text")):
        _, start = attached(at_hand, build(towers=towers, template="a {}."))
        tokens = at_hand.tokenizer([f"a {name.replace('_', ' ')}." for name in NAMES])
        with torch.no_grad():
            torch.testing.assert_close(
                start.text(), at_hand.model.encode_text(tokens), rtol=1e-5, atol=2e-6
            )
        _, learner = attached(at_hand, build(towers=towers), moved=0.2)
        features = learner.images(pixels()) if learner.images else torch.ones(4, 16)
        learner.loss(features, LABELS)[0].backward()  # type: ignore[no-untyped-call]
        assert any(name.startswith("transformer") for name in learner.parameters)
        assert all(p.grad is not None for p in learner.parameters.values())


def test_a_run_chooses_the_channels_by_its_few_shots(
    encoder: Encoder, draw_photos: Callable[..., Path]
) -> None:
    source = resolve_folder(draw_photos(10))
    method = SCT(channels=5, iterations_per_shot=1)
    done = run(method, encoder, source, shots=2, seed=1, batch_size=4)
    train = source.splits["train"]
    rows = draw([item.label for item in train], source.classnames, shots=2, seed=1).train
    crops = [encoder.preprocess.center(source.read(train[row].path)) for row in rows]
    clip, learner = attached(encoder, method)
    assert learner.calibrate is not None
    learner.calibrate([torch.stack(crops)], torch.tensor([train[row].label for row in rows]))
    ours, expected = (
        [m.channels.tolist() for m in c.model.modules() if isinstance(m, ChannelSubset)]
        for c in (done.clip, clip)
    )
    assert ours == expected
    assert ours != [[0, 1, 2, 3, 4]] * 2


def test_channels_are_the_most_active_of_the_mean_class(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    learner = SCT(channels=5).attach(clip, NAMES, TEMPLATES)
    assert learner.calibrate is not None
    images, labels = pixels(6), torch.tensor([2, 0, 2, 1, 0, 2])
    learner.calibrate(iter([images[:4], images[4:]]), labels)
    chosen = [m.channels for m in clip.model.modules() if isinstance(m, ChannelSubset)]
    model: Any = encoder.model
    streams: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for image in images:
            x = naive_tokens(model, image)
            for stream, block in zip(streams, model.visual.transformer.resblocks, strict=True):
                x = x + attend(block, block.ln_1(x))
                stream.append(x[1:])
                x = x + feed(block, x)
    assert len(chosen) == 2
    for stream, channels in zip(streams, chosen, strict=True):
        norms = []
        for c in range(3):
            own = torch.cat([stream[i] for i in range(6) if labels[i] == c])
            norms.append(own.norm(dim=0))
        best = torch.stack(norms).mean(dim=0).argsort(descending=True)[:5]
        assert channels.tolist() == sorted(best.tolist())


@pytest.mark.parametrize("method", [AdaptFormer(), Convpass(), SCT(), InnerCLIPAdapter()])
def test_a_resnet_is_refused_by_name(random_resnet: Path, method: PEFTMethod) -> None:
    clip = Clip.of(load(f"local-dir:{random_resnet}", device="cpu"))
    with pytest.raises(UserError, match=f"{method.name} needs the blocks of a vision transformer"):
        method.attach(clip, NAMES, TEMPLATES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdaptFormer(dim=0), "dim must be a whole number, 1 or more"),
        (lambda: AdaptFormer(dropout=1.0), "dropout must be 0 or more and less than 1"),
        (lambda: Houlsby(dim=0), "dim must be a whole number, 1 or more"),
        (lambda: Convpass(towers="both"), "convpass changes the image tower only"),
        (lambda: SCT(towers="text"), "sct changes the image tower only"),
        (lambda: SCT(channels=0), "channels must be a whole number, 1 or more"),
        (lambda: InnerCLIPAdapter(ratio=1.5), "ratio must be 0 or more and at most 1"),
        (lambda: InnerCLIPAdapter(block=-1), "block must be a whole number, 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], PEFTMethod], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_what_the_tower_has_no_room_for_is_refused(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="channels must be at most the tower's width, 64; got 65"):
        attached(encoder, SCT(channels=65))
    with pytest.raises(UserError, match="block must be at most the tower's last, 2; got 3"):
        attached(encoder, InnerCLIPAdapter(block=3))
