"""Compositions of adapters, LoRA and prompts of widths of their own, and their files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import configure
from fewshot.endtoend.methods.composition import Composition, with_towers
from fewshot.endtoend.parts.branch import Bottleneck
from fewshot.endtoend.parts.elastic import ElasticBottleneck, ElasticLoRA, elastic, narrow
from fewshot.endtoend.search.composition_file import read_composition, write_composition

NAMES = ("cat", "dog", "zebra")
PLACE = ("image_adapter", 0)


def composition(widths: dict[str, str], **more: Any) -> Any:
    return configure("composition", {**with_towers(widths), **more}, seed=1)


def attached(encoder: Encoder, widths: dict[str, str]) -> tuple[Clip, Any]:
    clip = Clip.of(encoder)
    return clip, composition(widths).attach(clip, NAMES, ["a {}."])


def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def outputs(clip: Clip, learner: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        encoded: Tensor = clip.model.encode_image(pixels())
        return encoded, learner.text().detach()


def moved(learner: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


FULL = {
    "image_adapter": "6",
    "image_lora": "3",
    "image_vpt": "4",
    "text_adapter": "5",
    "text_lora": "2",
}
PART = {
    "image_adapter": "0,2", "image_lora": "3,1", "image_vpt": "2,0", "text_adapter": "5,0",
    "text_lora": "0,1",
}  # fmt: skip


def test_a_composition_is_the_first_rows_of_a_wider_one(encoder: Encoder) -> None:
    (wide, of_wide), (small, of_small) = attached(encoder, FULL), attached(encoder, PART)
    moved(of_wide)
    with torch.no_grad():
        for name, parameter in of_small.parameters.items():
            first = tuple(slice(n) for n in parameter.shape)
            parameter.copy_(of_wide.parameters[name][first])
    before = outputs(wide, of_wide)
    widths = {
        (name, i): int(width)
        for name, text in PART.items()
        for i, width in enumerate(text.split(","))
    }
    narrow(wide.model, widths)
    for ours, theirs, full in zip(
        outputs(wide, of_wide), outputs(small, of_small), before, strict=True
    ):
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours, full, atol=1e-3)
    trained = sum(module.trained(widths[module.place]) for module in elastic(wide.model))
    assert trained == sum(parameter.numel() for parameter in of_small.parameters.values())


def test_without_prompts_a_composition_starts_as_the_model_it_is_put_into(encoder: Encoder) -> None:
    clip, learner = attached(encoder, FULL | {"image_vpt": "0"})
    with torch.no_grad():
        expected = (
            Clip.of(encoder).model.encode_image(pixels()),
            encoder.model.encode_text(clip.tokens([f"a {name}." for name in NAMES])),
        )
    for ours, theirs in zip(outputs(clip, learner), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_everything_that_is_put_in_learns_and_nothing_else(encoder: Encoder) -> None:
    clip, learner = attached(encoder, PART)
    moved(learner)
    learner.logits(learner.images(pixels())).square().sum().backward()
    declared = {id(parameter) for parameter in learner.parameters.values()}
    assert all(p.requires_grad == (id(p) in declared) for p in clip.model.parameters())
    assert all(parameter.grad is not None for parameter in learner.parameters.values())


def test_an_elastic_part_at_full_width_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=generator)
    plain = torch.nn.Linear(8, 8)
    lora = ElasticLoRA(plain, PLACE, 3, generator)
    lora.B.data.normal_(generator=generator)
    torch.testing.assert_close(lora(x), linear(x, plain.weight + lora.B @ lora.A, plain.bias))
    torch.testing.assert_close(lora(x), linear(x, *lora.folded()))
    core = ElasticBottleneck(8, PLACE, 3, generator)
    core.up.weight.data.normal_(generator=generator)
    hidden = x @ core.down.weight.T
    expected = hidden / (1 + (-1.702 * hidden).exp()) @ core.up.weight.T
    torch.testing.assert_close(core(x), expected)
    assert isinstance(core, Bottleneck)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"image_lora": "2,-1"}, "image_lora must be whole numbers, 0 or more.*'2,-1'"),
        ({"image_lora": "1" + 20 * "0"}, "image_lora must be whole numbers, .*of up to 9 digits"),
        ({"text_lora": "2"}, "towers must be both, where there are widths above 0; got image"),
        (dict.fromkeys(("image_adapter", "image_lora", "image_vpt"), "0"), "all widths are 0"),
    ],
)
def test_widths_that_cannot_be_are_refused(settings: dict[str, str], refused: str) -> None:
    with pytest.raises(UserError, match=refused):
        configure("composition", settings, seed=1)


def test_a_width_for_each_block_is_needed_or_one_for_all(encoder: Encoder) -> None:
    with pytest.raises(
        UserError, match="image_lora has 3 widths, and the image tower has 2 blocks"
    ):
        attached(encoder, {"image_lora": "1,2,3"})


def test_a_composition_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    for widths in (PART, {"text_lora": "0,3"}):
        written = composition(widths, lr="0.002", template='a "{}"\n')
        write_composition(path, written, "By hand.")
        read = configure("composition", read_composition(path), seed=1)
        assert read == written
    assert "image" not in path.read_text()
    path.write_text("[image]\nlora = 4\n")
    assert read_composition(path)["image_lora"] == "4"
    assert read_composition(path)["image_adapter"] == "0"


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ("[images]\nlora = 2", "unknown tower in .*c.toml 'images'; did you mean 'image'"),
        (
            "[text]\nvpt = 2",
            r"unknown primitive of \[text\] in .*c.toml 'vpt'; known: adapter, lora",
        ),
        ("[image]\nlora = [2, 1.5]", "c.toml: image.lora: expected a width.*got .2, 1.5"),
        ("[image]\nlora = -1", "c.toml: image.lora: expected a width, 0 or more"),
        ("[image]\nlora = []", "c.toml: image.lora: expected a width"),
        ("[image]\nlora = 0", "c.toml: all widths are 0"),
        ("image = 3", "c.toml: image: expected a table of widths, got '3'"),
        ("image_lora = 3", "c.toml: image_lora follows from the tables"),
        ("towers = 'both'", "c.toml: towers follows from the tables"),
        ("[image", "c.toml is not a valid TOML file"),
    ],
)
def test_a_bad_file_is_refused_in_a_line(tmp_path: Path, content: str, refused: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=refused):
        read_composition(path)


def test_a_file_that_is_not_there_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
        read_composition(tmp_path / "none.toml")


def test_the_defaults_are_a_composition() -> None:
    assert Composition().towers == "image"
