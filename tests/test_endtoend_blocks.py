from itertools import pairwise
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from cache.errors import UserError
from fewshot.endtoend.attention import unfuse
from fewshot.endtoend.parts.blocks import blocks_of, matrix_paths

TEXT = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": 3}


@pytest.fixture(scope="module")
def vit() -> Any:
    return built({"image_size": 32, "layers": 2, "width": 64, "patch_size": 16})


@pytest.fixture(scope="module")
def resnet() -> Any:
    return built({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8})


def built(vision: dict[str, Any]) -> Any:
    with torch.device("meta"):
        model = open_clip.CLIP(8, vision, TEXT)
    unfuse(model)
    return model


@pytest.mark.parametrize(
    ("position", "numbers"),
    [
        ("all", range(12)),
        ("bottom", range(4)),
        ("mid", range(4, 8)),
        ("up", range(8, 12)),
        ("half-bottom", range(6)),
        ("half-up", range(6, 12)),
    ],
)
def test_positions_of_12_blocks_are_the_published_ones(position: str, numbers: range) -> None:
    assert blocks_of(position, 12) == numbers


@pytest.mark.parametrize("parts", [("all",), ("half-bottom", "half-up"), ("bottom", "mid", "up")])
def test_positions_of_any_depth_cover_it_and_none_is_empty(parts: tuple[str, ...]) -> None:
    for depth in range(1, 50):
        chosen = [blocks_of(part, depth) for part in parts]
        assert all(chosen)
        assert {i for blocks in chosen for i in blocks} == set(range(depth))
        for before, after in pairwise(chosen):
            assert 0 <= before.stop - after.start <= (depth % len(parts) > 0)


def test_every_matrix_of_a_tower_is_found_in_one_order(vit: Any) -> None:
    assert matrix_paths(vit, "image", ["fc2", "q", "o"], "half-up") == [
        f"visual.transformer.resblocks.1.{matrix}"
        for matrix in ("attn.q_proj", "attn.out_proj", "mlp.c_proj")
    ]
    text = matrix_paths(vit, "text", ["q", "k", "v", "o", "fc1", "fc2"], "all")
    plain = [path for path, m in vit.transformer.named_modules() if isinstance(m, nn.Linear)]
    assert text == [f"transformer.{path}" for path in plain]


@pytest.mark.parametrize("position", ["all", "bottom", "mid", "half-up"])
def test_the_one_attention_of_a_resnet_is_at_every_position(resnet: Any, position: str) -> None:
    expected = [f"visual.attnpool.{x}_proj" for x in "qkvc"]
    assert matrix_paths(resnet, "image", ["q", "k", "v", "o"], position) == expected
    for path in expected:
        assert isinstance(resnet.get_submodule(path), nn.Linear)


def test_what_is_not_there_is_refused_by_name(vit: Any, resnet: Any) -> None:
    with pytest.raises(UserError, match="unknown matrix 'x'; known: fc1, fc2, k, o"):
        matrix_paths(vit, "text", ["q", "x"], "all")
    with pytest.raises(UserError, match="unknown position 'top'; known: all, bottom"):
        matrix_paths(vit, "text", ["q"], "top")
    with pytest.raises(UserError, match="ResNet's image tower has no matrix fc1; choose of q, k"):
        matrix_paths(resnet, "image", ["q", "fc1"], "all")
