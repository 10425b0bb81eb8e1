import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.models.loading import load
from fewshot.endtoend.attention import Attention, AttentionPool, _unfused, fuse, unfuse
from fewshot.endtoend.packing import Prompts


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def built(directory: Path) -> Any:
    model = load(f"local-dir:{directory}").model.requires_grad_(True)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter += 0.05 * normal(i, *parameter.shape)
    return model


def stock(directory: Path) -> Any:
    """A model with random weights and biases; open_clip starts attention's biases at zero."""
    return copy.deepcopy(built(directory))


def unfused(model: Any) -> Any:
    ours = copy.deepcopy(model)
    unfuse(ours)
    return ours


def pixels() -> Tensor:
    return normal(0, 3, 3, 32, 32)


def tokens() -> Tensor:
    tokenize: Callable[[list[str]], Tensor] = open_clip.get_tokenizer("ViT-B-32")
    return tokenize(["a photo of a cat.", "one", "a b c d e f"])


@pytest.fixture(params=["random_vit", "random_resnet"])
def model(request: pytest.FixtureRequest) -> Any:
    return stock(request.getfixturevalue(request.param))


def test_features_are_those_of_the_stock_model(model: Any) -> None:
    ours = unfused(model)
    torch.testing.assert_close(
        ours.encode_image(pixels()), model.encode_image(pixels()), rtol=2e-6, atol=2e-6
    )
    torch.testing.assert_close(
        ours.encode_text(tokens()), model.encode_text(tokens()), rtol=2e-6, atol=2e-6
    )


def test_no_grad_inference_is_that_of_the_stock_model() -> None:
    encoder = load("tiny")
    expected = encoder.encode_images(pixels()), encoder.encode_text(["a photo of a cat."])
    unfuse(encoder.model)
    torch.testing.assert_close(encoder.encode_images(pixels()), expected[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(
        encoder.encode_text(["a photo of a cat."]), expected[1], rtol=2e-6, atol=2e-6
    )


def test_gradients_of_all_weights_are_those_of_the_stock_model(model: Any) -> None:
    model = model.double()
    ours = unfused(model)
    for one in (model, ours):
        (one.encode_image(pixels().double()).sin().sum()).backward()
        (one.encode_text(tokens()).sin().sum()).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any("in_proj_weight" in name for name in expected)
    for name, parameter in ours.named_parameters():
        stem, _, kind = name.rpartition(".")
        stem, _, leaf = stem.rpartition(".")
        if f"{stem}.in_proj_{kind}" in expected and leaf in ("q_proj", "k_proj", "v_proj"):
            packed = expected[f"{stem}.in_proj_{kind}"]
            gradient = packed.chunk(3)[("q_proj", "k_proj", "v_proj").index(leaf)]
        elif name not in expected:
            assert parameter.grad is None
            continue
        else:
            gradient = expected[name]
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11)


def test_every_projection_is_a_linear_layer_that_is_called(model: Any) -> None:
    ours = unfused(model)
    matrices = [
        child
        for module in ours.modules()
        if isinstance(module, Attention | AttentionPool)
        for child in module.children()
    ]
    assert {type(matrix) for matrix in matrices} == {nn.Linear}
    assert len(matrices) == 4 * (4 if hasattr(ours.visual, "transformer") else 3)
    called: list[nn.Module] = []
    for matrix in matrices:
        matrix.register_forward_hook(lambda module, given, y: called.append(module))
    ours.encode_image(pixels())
    ours.encode_text(tokens())
    assert sorted(map(id, called)) == sorted(map(id, matrices))


def test_fusing_again_gives_the_stock_model(model: Any) -> None:
    ours = unfused(model)
    fuse(ours)
    assert [type(m) for m in ours.modules()] == [type(m) for m in model.modules()]
    assert ours.state_dict().keys() == model.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert torch.equal(ours.encode_image(pixels()), model.encode_image(pixels()))
    assert torch.equal(ours.encode_text(tokens()), model.encode_text(tokens()))


@pytest.mark.parametrize("trained", [True, False])
def test_what_was_frozen_stays_frozen_both_ways(model: Any, trained: bool) -> None:
    model.requires_grad_(False).train()
    model.transformer.resblocks[1].attn.in_proj_weight.requires_grad_(trained)
    ours = unfused(model)
    attention = ours.transformer.resblocks[1].attn
    assert attention.q_proj.weight.requires_grad == trained
    assert attention.q_proj.bias.requires_grad == trained
    assert attention.training
    assert not attention.out_proj.weight.requires_grad
    assert sum(p.requires_grad for p in ours.parameters()) == 6 * trained
    fuse(ours)
    assert sum(p.requires_grad for p in ours.parameters()) == 2 * trained
    assert ours.transformer.resblocks[1].attn.training


def test_unfusing_copies_the_weights(random_vit: Path) -> None:
    model = stock(random_vit)
    packed = model.transformer.resblocks[0].attn.in_proj_weight
    before = packed.detach().clone()
    unfuse(model)
    with torch.no_grad():
        model.transformer.resblocks[0].attn.q_proj.weight.zero_()
    assert torch.equal(packed, before)


def test_a_second_unfusing_changes_nothing(random_vit: Path) -> None:
    ours = unfused(stock(random_vit))
    modules = list(ours.modules())
    unfuse(ours)
    assert list(ours.modules()) == modules


@pytest.mark.parametrize("batch_first", [True, False])
def test_either_order_of_batch_and_tokens_is_the_stock_modules(batch_first: bool) -> None:
    theirs = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    nn.init.normal_(theirs.in_proj_bias, generator=torch.Generator().manual_seed(0))
    holder = nn.Sequential(theirs)
    mask = normal(9, 5, 7)
    query, key, value = normal(1, 2, 5, 12), normal(2, 2, 7, 12), normal(3, 2, 7, 12)
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    expected = theirs(query, key, value, attn_mask=mask, need_weights=False)[0]
    holder[0] = _unfused(theirs)
    got, weights = holder[0](query, key, value, need_weights=False, attn_mask=mask)
    assert weights is None
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)
    fuse(holder)
    again = holder[0](query, key, value, attn_mask=mask, need_weights=False)[0]
    assert torch.equal(again, expected)


def dense(shared: int, lengths: list[int]) -> Tensor:
    """Who may not see whom, entry by entry, as minus infinity."""
    owner = [-1] * shared + [c for c, length in enumerate(lengths) for _ in range(length)]
    n = len(owner)
    mask = torch.full((n, n), -torch.inf, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            if owner[j] in (-1, owner[i]):
                mask[i, j] = 0
    return mask


@pytest.mark.parametrize("shared", [0, 1, 4])
@pytest.mark.parametrize("lengths", [[1], [3, 1, 2], [2, 2], [1, 1, 5, 1]])
def test_the_mask_of_prompts_is_the_dense_one(shared: int, lengths: list[int]) -> None:
    q, k, v, out = (nn.Linear(12, 12) for _ in range(4))
    attention = Attention(q, k, v, out, 3).double()
    row = normal(0, 1, shared + sum(lengths), 12).double().requires_grad_()
    results = []
    for mask in (dense(shared, lengths), Prompts.of(shared, torch.tensor(lengths))):
        got = attention(row, row, row, attn_mask=mask.to(torch.float64))[0]
        gradients = torch.autograd.grad(got.sin().sum(), [row, *attention.parameters()])
        results.append([got, *gradients])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def custom(**changes: Any) -> Any:
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1}
    kind = changes.pop("kind", open_clip.CLIP)
    vision |= changes.pop("vision", {})
    model: nn.Module = kind(8, vision, text | changes.pop("text", {}))
    return model


def test_pooling_with_keys_of_another_width_is_taken_apart_and_put_back() -> None:
    model = custom(vision={"attentional_pool": True, "attn_pooler_queries": 3}).eval()
    ours = unfused(model)
    assert isinstance(ours.visual.attn_pool.attn, Attention)
    image = normal(0, 2, 3, 32, 32)
    torch.testing.assert_close(ours.visual(image), model.visual(image), rtol=2e-6, atol=2e-6)
    fuse(ours)
    assert torch.equal(ours.visual(image), model.visual(image))
    assert ours.state_dict().keys() == model.state_dict().keys()


def test_attention_of_other_kinds_is_left_as_it_is() -> None:
    model = custom(vision={"scaled_cosine_attn": True})
    names = list(model.visual.state_dict())
    unfuse(model)
    assert list(model.visual.state_dict()) == names


def test_what_is_no_plain_matrix_is_not_fused(random_vit: Path) -> None:
    ours = unfused(stock(random_vit))
    ours.visual.transformer.resblocks[0].attn.k_proj = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(UserError, match=r"visual.transformer.resblocks.0.attn.k_proj is a Seq"):
        fuse(ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_both_towers(model: Any, dtype: torch.dtype) -> None:
    ours = unfused(model)
    exact = ours.encode_image(pixels()), ours.encode_text(tokens())
    with torch.autocast("cpu", dtype):
        rough = ours.encode_image(pixels()), ours.encode_text(tokens())
    for expected, got in zip(exact, rough, strict=True):
        assert got.dtype == dtype
        assert (got.float() - expected).norm() < 0.02 * expected.norm()
