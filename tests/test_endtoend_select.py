from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cache.errors import UserError
from cache.models.loading import load
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.select import Kind, select

KINDS: tuple[Kind, ...] = ("norms", "biases", "all")


@pytest.fixture
def vit(random_vit: Path) -> Any:
    return Clip.of(load(f"local-dir:{random_vit}", device="cpu")).model


@pytest.fixture
def resnet(random_resnet: Path) -> Any:
    return Clip.of(load(f"local-dir:{random_resnet}", device="cpu")).model


def chosen(model: Any, *which: Any) -> set[str]:
    model.requires_grad_(False)
    return set(select(model, *which))


def named(model: Any, tower: str) -> set[str]:
    names = {name for name, _ in model.named_parameters()} - {"logit_scale"}
    return {name for name in names if name.startswith("visual.") == (tower == "image")}


def test_norms_of_a_vit_are_listed_by_hand(vit: Any) -> None:
    norms = ["visual.ln_pre", "visual.ln_post"]
    norms += [f"visual.transformer.resblocks.{i}.ln_{j}" for i in (0, 1) for j in (1, 2)]
    assert chosen(vit, "image", "norms") == {
        f"{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")
    }
    text = {name for name in named(vit, "text") if "ln_" in name}
    assert chosen(vit, "text", "norms") == text
    assert len(text) == 10


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_biases_and_all_of_a_tower(kind: str, tower: Any, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    everything = named(model, tower)
    assert chosen(model, tower, "all") == everything
    assert chosen(model, tower, "biases") == {n for n in everything if n.endswith(".bias")}


def test_norms_of_a_resnet_are_its_batch_norms(resnet: Any) -> None:
    expected = {
        f"{path}.{leaf}"
        for path, module in resnet.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    assert chosen(resnet, "image", "norms") == expected
    assert all("running" not in name for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_are_the_two_and_never_the_temperature(vit: Any, kind: Kind) -> None:
    both = chosen(vit, "both", kind)
    assert both == chosen(vit, "text", kind) | chosen(vit, "image", kind)
    assert "logit_scale" not in both


def test_only_what_was_chosen_gets_a_gradient(vit: Any) -> None:
    selected = select(vit, "image", "norms")
    assert {n for n, p in vit.named_parameters() if p.requires_grad} == set(selected)
    assert all(parameter is vit.get_parameter(name) for name, parameter in selected.items())


@pytest.mark.parametrize(
    ("towers", "block", "after"),
    [
        ("image", "visual.transformer.resblocks.1", ["visual.ln_post", "visual.proj"]),
        ("text", "transformer.resblocks.1", ["ln_final", "text_projection"]),
    ],
)
def test_the_last_block_comes_with_what_follows_it(
    vit: Any, towers: Any, block: str, after: list[str]
) -> None:
    expected = {n for n in named(vit, towers) if n.startswith((f"{block}.", *after))}
    assert chosen(vit, towers, "all", 1) == expected
    two = chosen(vit, towers, "all", 2)
    assert two > expected
    assert not any("embedding" in n or "conv1" in n or "ln_pre" in n for n in two)


def test_a_resnets_blocks_are_those_of_its_stages(resnet: Any) -> None:
    last = chosen(resnet, "image", "all", 2)
    assert {n.split(".")[1] for n in last} == {"layer3", "layer4", "attnpool"}
    every = chosen(resnet, "image", "all", 4)
    assert {n.split(".")[1] for n in named(resnet, "image") - every} == {
        "conv1", "bn1", "conv2", "bn2", "conv3", "bn3",
    }  # fmt: skip


def test_more_blocks_than_there_are_is_refused(vit: Any) -> None:
    with pytest.raises(UserError, match="last must be 0, for all, to 2, the image tower's blocks"):
        select(vit, "image", "all", 3)
