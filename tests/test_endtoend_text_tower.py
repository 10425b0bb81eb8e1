import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.models.loading import load
from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.text_tower import encode, encode_with_prefix

PROMPTS = [
    "a photo of a cat.",
    "a photo of a long haired dog, asleep.",
    "a photo of a zebra crossing.",
    "a photo of a b.",
]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokenize(prompts: list[str]) -> Tensor:
    tokens: Tensor = open_clip.get_tokenizer("ViT-B-32")(prompts)
    return tokens


@functools.cache
def stock(directory: Path) -> Any:
    model = load(f"local-dir:{directory}").model.requires_grad_(True)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter += 0.05 * normal(i, *parameter.shape)
    return model


def pair(directory: Path, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """A stock model with random weights and its unfused copy."""
    model = copy.deepcopy(stock(directory)).to(dtype)
    ours = copy.deepcopy(model)
    unfuse(ours)
    return model, ours


def stock_from_embeddings(model: Any, embeddings: Tensor, end: list[int]) -> Tensor:
    """The tower on all 77 positions, one prompt at a time, as CoOp's code runs it."""
    rows = []
    for prompt, last in zip(embeddings, end, strict=True):
        x = (prompt + model.positional_embedding)[None]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        rows.append(x[0, last] @ model.text_projection)
    return torch.stack(rows)


def gradients(model: Any, features: Tensor, *more: Tensor) -> dict[str, Tensor]:
    """Gradients of a function of all features, the packed matrices' as those of their thirds."""
    named = {name: p for name, p in model.named_parameters() if "visual" not in name}
    named |= {f"input {i}": x for i, x in enumerate(more)}
    found: Sequence[Tensor | None] = torch.autograd.grad(
        features.sin().sum(), list(named.values()), allow_unused=True
    )
    result = {}
    for name, gradient in zip(named, found, strict=True):
        if gradient is None:
            continue
        stem, packed, kind = name.partition("in_proj_")
        if packed:
            for letter, third in zip("qkv", gradient.chunk(3), strict=True):
                result[f"{stem}{letter}_proj.{kind}"] = third
        else:
            result[name] = gradient
    return result


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert len(got) > 30
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], ["", "x y z"], PROMPTS[:1] * 3])
def test_single_precision_features_are_those_of_77_positions(
    random_vit: Path, prompts: list[str], share_prefix: bool
) -> None:
    model, ours = pair(random_vit, torch.float32)
    tokens = tokenize(prompts)
    got = encode(ours, tokens, share_prefix=share_prefix)
    torch.testing.assert_close(got, model.encode_text(tokens), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 9])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_features_and_gradients_are_those_of_77_positions(
    random_vit: Path, share_prefix: bool, chunk: int | None, checkpointing: bool
) -> None:
    model, ours = pair(random_vit)
    tokens = tokenize(PROMPTS)
    expected = model.encode_text(tokens)
    got = encode(ours, tokens, share_prefix=share_prefix, chunk=chunk, checkpointing=checkpointing)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    same(gradients(ours, got), gradients(model, expected))


def test_prompts_of_the_full_length_fit(random_vit: Path) -> None:
    model, ours = pair(random_vit)
    tokens = tokenize(["word " * 200, "a"])
    assert int(tokens.argmax(dim=1).max()) == 76
    torch.testing.assert_close(
        encode(ours, tokens), model.encode_text(tokens), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("n_prefix", [0, 1, 6])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_learned_prompts_get_the_gradients_of_77_positions(
    random_vit: Path, n_prefix: int, chunk: int | None, checkpointing: bool
) -> None:
    model, ours = pair(random_vit)
    prefix = normal(1, n_prefix, 8).double().requires_grad_()
    suffix = normal(2, 3, 7, 8).double().requires_grad_()
    end = [4, 1, 6]
    padding = normal(3, 3, 77 - n_prefix - 7, 8).double()
    whole = torch.cat([prefix.expand(3, -1, -1), suffix, padding], dim=1)
    expected = stock_from_embeddings(model, whole, [n_prefix + i for i in end])
    got = encode_with_prefix(
        ours, prefix, suffix, torch.tensor(end), chunk=chunk, checkpointing=checkpointing
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    same(gradients(ours, got, prefix, suffix), gradients(model, expected, prefix, suffix))


def test_a_prefix_of_single_precision_gets_its_gradient_to_1e_5(random_vit: Path) -> None:
    model, ours = pair(random_vit, torch.float32)
    prefix = normal(1, 17, 8).requires_grad_()
    suffix, end = normal(2, 40, 6, 8), torch.arange(40) % 6
    whole = torch.cat([prefix.expand(40, -1, -1), suffix, torch.zeros(40, 54, 8)], dim=1)
    expected = stock_from_embeddings(model, whole, (17 + end).tolist())
    got = encode_with_prefix(ours, prefix, suffix, end)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=5e-6)
    (left,) = torch.autograd.grad(expected.sin().sum(), prefix)
    (right,) = torch.autograd.grad(got.sin().sum(), prefix)
    assert (left - right).norm() < 1e-5 * left.norm()


@pytest.mark.parametrize("chunk", [None, 2])
def test_prompts_of_embeddings_that_share_nothing(random_vit: Path, chunk: int | None) -> None:
    model, ours = pair(random_vit)
    embeddings = normal(0, 3, 9, 8).double().requires_grad_()
    end = [8, 0, 3]
    whole = torch.cat([embeddings, torch.zeros(3, 68, 8).double()], dim=1)
    expected = stock_from_embeddings(model, whole, end)
    got = encode_with_prefix(ours, embeddings[0, :0], embeddings, torch.tensor(end), chunk=chunk)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    same(gradients(ours, got, embeddings), gradients(model, expected, embeddings))


@pytest.mark.parametrize("projection", ["linear", "none"])
def test_other_projections_are_applied(random_vit: Path, projection: str) -> None:
    model, ours = pair(random_vit)
    for one in (model, ours):
        del one.text_projection
        one.text_projection = None
        if projection == "linear":
            one.text_projection = nn.Linear(8, 5).double()
            with torch.no_grad():
                one.text_projection.weight.copy_(normal(0, 5, 8))
                one.text_projection.bias.copy_(normal(1, 5))
    tokens = tokenize(PROMPTS)
    torch.testing.assert_close(
        encode(ours, tokens), model.encode_text(tokens), rtol=1e-12, atol=1e-12
    )


def test_end_of_text_is_found_by_its_id_where_the_model_says_so(random_vit: Path) -> None:
    model, ours = pair(random_vit)
    for one in (model, ours):
        one.text_pool_type, one.text_eos_id = "eos", 7
    tokens = torch.zeros(2, 77, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([9, 12, 7, 40])
    tokens[1, :4] = torch.tensor([9, 40000, 12, 7])
    torch.testing.assert_close(
        encode(ours, tokens), model.encode_text(tokens), rtol=1e-12, atol=1e-12
    )


def test_only_the_tokens_that_matter_go_through_the_blocks(random_vit: Path) -> None:
    _, ours = pair(random_vit)
    seen: list[int] = []
    ours.transformer.resblocks[0].register_forward_hook(
        lambda module, given, y: seen.append(y.shape[0] * y.shape[1])
    )
    tokens = tokenize(PROMPTS)
    own = [int(length) - 5 + 1 for length in tokens.argmax(dim=1)]  # less start and "a photo of a"
    encode(ours, tokens)
    encode(ours, tokens, share_prefix=False)
    encode(ours, tokens, chunk=2)
    assert seen == [5 + sum(own), 20 + sum(own), 5 + sum(own[:2]), 5 + sum(own[2:])]


def test_checkpointing_draws_dropout_once(random_vit: Path) -> None:
    _, ours = pair(random_vit)
    ours.transformer.resblocks[0].mlp.append(nn.Dropout(0.5))
    ours.train()
    results = []
    for checkpointing in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            features = encode(ours, tokenize(PROMPTS), chunk=2, checkpointing=checkpointing)
        results.append((features, gradients(ours, features)))
    assert torch.equal(results[0][0], results[1][0])
    same(results[0][1], results[1][1])


def test_checkpointing_keeps_fewer_activations(random_vit: Path) -> None:
    _, ours = pair(random_vit)
    kept = []
    for checkpointing in (True, False):
        sizes: list[int] = []

        def pack(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            encode(ours, tokenize(PROMPTS), chunk=2, checkpointing=checkpointing)
        kept.append(sum(sizes))
    assert 20 * kept[0] < kept[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_gradient_in_single_precision(
    random_vit: Path, dtype: torch.dtype
) -> None:
    _, ours = pair(random_vit, torch.float32)
    prefix = normal(1, 5, 8).requires_grad_()
    suffix, end = normal(2, 4, 6, 8), torch.tensor([5, 2, 3, 2])
    exact = encode_with_prefix(ours, prefix, suffix, end)
    (expected,) = torch.autograd.grad(exact.sum(), prefix)
    for checkpointing in (True, False):
        with torch.autocast("cpu", dtype):
            rough = encode_with_prefix(ours, prefix, suffix, end, checkpointing=checkpointing)
        assert rough.dtype == dtype
        assert (rough - exact).norm() < 0.03 * exact.norm()
        (gradient,) = torch.autograd.grad(rough.float().sum(), prefix)
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() < 0.03 * expected.norm()


def clip(**text: Any) -> Any:
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    shape = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1}
    return open_clip.CLIP(8, vision, shape | text)


@pytest.mark.parametrize(
    "text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}]
)
def test_other_text_towers_run_on_the_whole_context(text: dict[str, Any]) -> None:
    model = clip(**text)
    tokens = torch.tensor([[1, 2, 49, 0, 0, 0, 0, 0], [1, 2, 3, 4, 49, 0, 0, 0]])
    expected = model.encode_text(tokens)
    unfuse(model)
    torch.testing.assert_close(encode(model, tokens, chunk=1), expected, rtol=2e-6, atol=2e-6)
    embedded = model.token_embedding(tokens)
    ours = encode_with_prefix(model, embedded[0, :2], embedded[:, 2:], torch.tensor([0, 2]))
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6)


def test_a_model_that_is_still_fused_is_refused() -> None:
    with pytest.raises(UserError, match="call unfuse first"):
        encode(clip(), torch.tensor([[1, 2, 49, 0, 0, 0, 0, 0]]))


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    model = clip()
    unfuse(model)
    prefix, suffix = torch.zeros(5, 8), torch.zeros(2, 6, 8)
    assert encode_with_prefix(model, prefix, suffix, torch.tensor([2, 0])).shape == (2, 8)
    with pytest.raises(UserError, match="fit into 8 tokens; the longest has 9; use fewer context"):
        encode_with_prefix(model, prefix, suffix, torch.tensor([0, 3]))


def test_a_chunk_of_no_prompt_is_refused() -> None:
    model = clip()
    unfuse(model)
    with pytest.raises(UserError, match="chunk must be 1 or more prompts at a time; got 0"):
        encode(model, torch.tensor([[1, 2, 49, 0, 0, 0, 0, 0]]), chunk=0)
