"""Methods that change how tokens run, on timm's towers, against restatements of one image."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor
from torch.nn.functional import linear

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS
from fewshot.endtoend.methods.dtl import DTL
from fewshot.endtoend.methods.lst import LST
from fewshot.endtoend.methods.prefix import Prefix
from fewshot.endtoend.methods.vpt import VPTDeep, VPTShallow
from fewshot.endtoend.methods.vqt import VQT
from fewshot.endtoend.parts.image_tokens import ImageTokens
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
    pixels,
)
from tests.modern_towers import TRUNKS, two_towers

# A class token; rotary positions, a class token and registers; rotary positions and a class token;
# none of these.
CLASS, REGISTERS, ROTARY, NONE = (
    "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "eva02_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
)  # fmt: skip

Alter = Callable[[Tensor, str], Tensor]


@pytest.fixture(scope="module", params=[CLASS, REGISTERS, ROTARY, NONE])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return two_towers(request.param)


def start(trunk: Any, image: Tensor) -> tuple[Tensor, Any]:
    """(L, W) tokens of an image where the blocks begin, and the rotary positions of its patches."""
    embedded = trunk._pos_embed(trunk.patch_embed(image[None]))
    x, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    return trunk.norm_pre(x)[0], rope


def attend(block: Any, queries: Tensor, tokens: Tensor, rope: Any, alter: Alter) -> Tensor:
    """timm's attention, head by head, of (l, W) queries; the last tokens have rotary positions.

    Its packed matrix and its norms are its own. `alter` changes keys ("k") and values ("v").
    """
    attention, heads = block.attn, block.attn.num_heads
    width = tokens.shape[1]
    if attention.qkv is None:
        parts = [getattr(attention, f"{letter}_proj") for letter in "qkv"]
        q, k, v = parts[0](queries), parts[1](tokens), parts[2](tokens)
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        biases = [None] * 3 if bias is None else bias.split(width)
        weights = attention.qkv.weight.split(width)
        q, k, v = (
            linear(x, w, b)
            for x, w, b in zip((queries, tokens, tokens), weights, biases, strict=True)
        )
    k, v = alter(k, "k"), alter(v, "v")
    mixed = []
    for h in range(heads):
        columns = slice(h * width // heads, (h + 1) * width // heads)
        one_q, one_k = attention.q_norm(q[:, columns]), attention.k_norm(k[:, columns])
        if rope is not None:
            n = len(rope)
            half = getattr(attention, "rotate_half", False)
            one_k = torch.cat([one_k[:-n], apply_rot_embed_cat(one_k[-n:], rope, half=half)])
            if len(one_q) == len(tokens):
                one_q = torch.cat([one_q[:-n], apply_rot_embed_cat(one_q[-n:], rope, half=half)])
        scores = (one_q @ one_k.T / (width // heads) ** 0.5).softmax(dim=1)
        mixed.append(scores @ v[:, columns])
    out: Tensor = attention.proj(attention.norm(torch.cat(mixed, dim=1)))
    return out


def as_it_is(part: Tensor, letter: str) -> Tensor:
    return part


def scaled(block: Any, half: int, x: Tensor) -> Tensor:
    gamma: Any = getattr(block, f"gamma_{half}", None)
    module: Any = getattr(block, f"ls{half}", None)
    out: Tensor = module(x) if module is not None else x if gamma is None else gamma * x
    return out


def run(block: Any, x: Tensor, rope: Any, alter: Alter = as_it_is) -> Tensor:
    n = block.norm1(x)
    x = x + scaled(block, 1, attend(block, n, n, rope, alter))
    return x + scaled(block, 2, block.mlp(block.norm2(x)))


def feature(model: Any, x: Tensor) -> Tensor:
    trunk = model.visual.trunk
    pooled: Tensor = model.visual.head(trunk.forward_head(trunk.norm(x[None])))
    return pooled[0]


def vpt(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    trunk, learned = model.visual.trunk, parameters["tokens"]
    x, rope = start(trunk, image)
    n, before = learned.shape[1], trunk.num_prefix_tokens
    x = torch.cat([x[:before], learned[0], x[before:]])
    for i, block in enumerate(trunk.blocks):
        if i < len(learned):
            x = torch.cat([x[:before], learned[i], x[before + n :]])
        x = run(block, x, rope)
    return feature(model, torch.cat([x[:before], x[before + n :]]))


def prefix(model: Any, parameters: Parameters, image: Tensor) -> Tensor:
    trunk = model.visual.trunk
    x, rope = start(trunk, image)
    for i, block in enumerate(trunk.blocks):

        def alter(part: Tensor, letter: str, i: int = i) -> Tensor:
            name = f"visual.transformer.resblocks.{i}.attn.{letter}_proj.prefix"
            return torch.cat([parameters[name], part]) if name in parameters else part

        x = run(block, x, rope, alter)
    return feature(model, x)


def vqt_answers(model: Any, queries: Tensor, image: Tensor) -> Tensor:
    trunk = model.visual.trunk
    x, rope = start(trunk, image)
    answers = []
    for own, block in zip(queries, trunk.blocks, strict=True):
        for query in own:
            n = block.norm1(x)
            seen = attend(block, block.norm1(query)[None], n, rope, as_it_is)[0]
            z = query + scaled(block, 1, seen)
            z = z + scaled(block, 2, block.mlp(block.norm2(z)))
            answers.append(z / z.norm())
        x = run(block, x, rope)
    return torch.cat(answers)


LEARN: list[tuple[PEFTMethod, Naive]] = [
    (VPTShallow(n_tokens=3), vpt),
    (VPTDeep(n_tokens=3), vpt),
    (Prefix(n_tokens=3), prefix),
    (Prefix(n_tokens=2, position="half-up"), prefix),
]


@pytest.mark.parametrize(("method", "naive"), LEARN)
def test_features_and_gradients_are_those_of_a_restatement(
    encoder: Encoder, method: PEFTMethod, naive: Naive
) -> None:
    assert_learns_as(encoder, method, naive)


def test_queries_are_answered_as_if_each_were_alone(encoder: Encoder) -> None:
    _, learner = attached(encoder, VQT(n_tokens=2, dropout=0.0), moved=0.2)
    assert learner.images is not None
    ours = learner.images(pixels())
    queries = learner.parameters["queries"]
    expected = torch.stack([vqt_answers(encoder.model, queries, image) for image in pixels()])
    torch.testing.assert_close(ours[:, 16:], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            ours[:, :16], encoder.model.encode_image(pixels()), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("method", [LST(), DTL(), DTL(writes="all", rank=3, kernel=3)])
def test_networks_at_the_side_start_as_zero_shot_and_learn(
    encoder: Encoder, method: PEFTMethod
) -> None:
    assert_starts_as_zero_shot(encoder, method)
    assert_trains_what_it_declares(encoder, method)


def test_the_class_token_alone_is_read_where_it_is_what_is_pooled() -> None:
    assert_starts_as_zero_shot(two_towers(CLASS), LST(seen="cls"))
    with pytest.raises(UserError, match="does not pool by its class token; use seen=all"):
        attached(two_towers(NONE), LST(seen="cls"))


@pytest.mark.parametrize("name", TRUNKS)
@torch.no_grad()
def test_a_tower_whose_blocks_are_run_here_computes_what_it_did(name: str) -> None:
    encoder = two_towers(name)
    clip = Clip.of(encoder)
    size = encoder.model.visual.trunk.patch_embed.img_size[0]
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = clip.model.encode_image(image)
    ImageTokens.of(clip, "this")
    assert torch.equal(clip.model.encode_image(image), expected)


def test_less_memory_changes_no_gradient(encoder: Encoder) -> None:
    gradients = []
    for method in (VPTDeep(n_tokens=2), Prefix(n_tokens=2)):
        for saving in (False, True):
            clip, learner = attached(encoder, method, moved=0.1)
            if saving:
                clip.save_memory()
                assert clip.model.visual.trunk.transformer.grad_checkpointing
            assert learner.images is not None
            learner.loss(learner.images(pixels()), LABELS)[0].backward()  # type: ignore[no-untyped-call]
            gradients.append([p.grad for p in learner.parameters.values()])
    for plain, again in (gradients[:2], gradients[2:]):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("name", ["maple", "promptsrc"])
def test_prompts_of_both_towers_are_learned(name: str) -> None:
    settings: dict[str, Any] = {"n_ctx": 2}
    clip = Clip.of(two_towers(REGISTERS))
    learner = METHODS[name](**settings).attach(clip, NAMES, TEMPLATES)
    assert learner.images is not None
    learner.loss(learner.images(pixels()), LABELS)[0].backward()  # type: ignore[no-untyped-call]
    learned = {n: p for n, p in learner.parameters.items() if p.numel()}
    assert len(learned) >= 2
    assert all(p.grad is not None and p.grad.any() for p in learned.values())


def test_blocks_with_rotary_positions_each_of_its_own_are_refused() -> None:
    encoder = two_towers(CLASS)
    small: Any = {"img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}
    encoder.model.visual.trunk = timm.create_model("vit_small_patch16_rope_mixed_224", **small)
    with pytest.raises(UserError, match="each block has rotary positions of its own"):
        attached(encoder, VPTDeep())
