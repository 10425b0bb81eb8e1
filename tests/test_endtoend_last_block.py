"""The last block for pooled tokens alone: the features and gradients of open_clip's own tower."""

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.last_block import pool_early, pooled


def tower(**vision: Any) -> Any:
    """An image tower of 5 tokens and two blocks, with random weights, in double precision."""
    torch.manual_seed(0)
    shape = {"image_size": 8, "layers": 2, "width": 128, "patch_size": 4} | vision
    text = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1}
    model: Any = open_clip.CLIP(6, shape, text).double()
    return model.visual


def taken_apart(visual: Any) -> Any:
    ours = copy.deepcopy(visual)
    unfuse(ours)
    pool_early(ours)
    return ours


def tokens_of_the_last_mlp(visual: Any, pixels: Tensor) -> int:
    seen: list[int] = []
    mlp = visual.transformer.resblocks[-1].mlp
    handle = mlp.register_forward_hook(lambda module, given, y: seen.append(y.shape[1]))
    visual(pixels)
    handle.remove()
    return seen[0]


PIXELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("scale", [{}, {"ls_init_value": 0.5}])
def test_features_and_gradients_are_those_of_all_tokens(scale: dict[str, Any], again: bool) -> None:
    stock = tower(**scale)
    ours = taken_apart(stock)
    ours.set_grad_checkpointing(again)
    results = []
    for visual in (stock, ours):
        pixels = PIXELS.clone().requires_grad_()
        features = visual(pixels)
        block = visual.transformer.resblocks[-1]
        weights = [pixels, block.ln_1.weight, block.mlp.c_fc.weight, visual.class_embedding]
        results.append([features, *torch.autograd.grad(features.sin().sum(), weights)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    assert tokens_of_the_last_mlp(stock, PIXELS) == 5
    assert tokens_of_the_last_mlp(ours, PIXELS) == 1


def test_a_copy_runs_on_its_own_weights() -> None:
    ours = taken_apart(tower())
    other = copy.deepcopy(ours)
    with torch.no_grad():
        other.ln_post.bias.add_(1)
    assert not torch.allclose(ours(PIXELS), other(PIXELS))


@pytest.mark.parametrize(
    "change",
    [
        lambda visual: setattr(visual, "pool_type", "avg"),
        lambda visual: setattr(visual, "output_tokens", True),
        lambda visual: visual.transformer.resblocks[-1].register_module("ls_2", nn.Softmax(dim=1)),
    ],
)
def test_where_other_tokens_matter_the_tower_is_left_alone(change: Any) -> None:
    stock = tower()
    ours = taken_apart(stock)
    for visual in (stock, ours):
        change(visual)
    torch.testing.assert_close(ours(PIXELS), stock(PIXELS), rtol=1e-11, atol=1e-13)
    assert tokens_of_the_last_mlp(ours, PIXELS) == 5


def test_what_stands_in_a_row_s_place_runs_as_it_is() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor, attn_mask: Any = None) -> Tensor:
            return x.roll(1, dims=1)

    x = torch.arange(6.0).view(1, 3, 2)
    assert torch.equal(pooled(Shifted(), x, torch.tensor([1])), x[:, :1])
