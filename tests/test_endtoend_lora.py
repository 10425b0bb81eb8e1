import copy
import functools
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from cache.errors import UserError
from cache.loading import load
from fewshot.endtoend.attention import fuse, unfuse
from fewshot.endtoend.parts.lora import LoRA, attach_lora, blocks_of, fold, load_weights, parameters
from fewshot.endtoend.parts.lora_official import Official, read_official, write_official
from fewshot.endtoend.text_tower import encode


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


@functools.cache
def built(directory: Path) -> Any:
    model = load(f"local-dir:{directory}").model
    unfuse(model)
    return model


def unfused(directory: Path) -> Any:
    return copy.deepcopy(built(directory))


def deep(text: int = 12, image: int = 12) -> Any:
    """A narrow model with as many blocks as CLIP's, without memory behind its weights."""
    vision = {"image_size": 32, "layers": image, "width": 64, "patch_size": 16}
    shape = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": text}
    model = open_clip.CLIP(8, vision, shape)
    unfuse(model)
    return model


def shaken(pairs: dict[str, LoRA]) -> dict[str, LoRA]:
    """The pairs with factors as after training."""
    with torch.no_grad():
        for i, pair in enumerate(pairs.values()):
            pair.B.copy_(normal(i, *pair.B.shape))
    return pairs


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat.", "a photo of dogs."])
    return model.encode_image(normal(7, 2, 3, 32, 32)), encode(model, tokens)


@pytest.mark.parametrize(("scaling", "scale"), [("sqrt", 3 / math.sqrt(4)), ("rank", 3 / 4)])
def test_a_pair_adds_its_product_to_the_matrix(scaling: Any, scale: float) -> None:
    plain = nn.Linear(6, 5).double()
    lora = LoRA(plain, 4, 3.0, scaling=scaling, generator=generator())
    lora.B.data = normal(1, 5, 4).double()
    x = normal(2, 7, 3, 6).double()
    expected = torch.stack([scale * lora.B @ (lora.A @ row) for row in x.view(-1, 6)])
    torch.testing.assert_close(lora(x), plain(x) + expected.view(7, 3, 5))
    torch.testing.assert_close(lora.delta(), scale * lora.B @ lora.A)
    assert lora.weight is plain.weight
    assert not lora.weight.requires_grad
    assert not lora.bias.requires_grad
    assert lora.A.dtype == torch.float64


def test_a_is_drawn_as_a_linear_layers_weight_and_b_is_zero() -> None:
    before = torch.get_rng_state()
    one = LoRA(nn.Linear(900, 8, device="meta").to_empty(device="cpu"), 64, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.B.any()
    bound = 1 / math.sqrt(900)
    assert 0.999 * bound < float(one.A.detach().abs().max()) <= bound
    assert float(one.A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    same = LoRA(nn.Linear(900, 8), 64, generator=generator())
    other = LoRA(nn.Linear(900, 8), 64, generator=generator(1))
    assert torch.equal(one.A, same.A)
    assert not torch.equal(one.A, other.A)


def test_dropout_acts_on_the_input_of_a_alone_and_only_in_training() -> None:
    plain = nn.Linear(400, 3)
    lora = LoRA(plain, 2, dropout=0.25, generator=generator())
    lora.B.data = normal(1, 3, 2)
    x = normal(2, 400)
    still = lora.eval()(x)
    torch.testing.assert_close(still, plain(x) + lora.delta() @ x)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = lora.train()(x)
        torch.manual_seed(5)
        mask = nn.functional.dropout(torch.ones(400), 0.25)
    assert 0.15 < float((mask == 0).float().mean()) < 0.35
    torch.testing.assert_close(drawn, plain(x) + lora.delta() @ (x * mask))
    assert not torch.allclose(drawn, still)


def test_merging_is_exact_and_undone_to_the_bit() -> None:
    lora = LoRA(nn.Linear(6, 5), 2, dropout=0.5, generator=generator())
    lora.B.data = normal(1, 5, 2)
    x, weight = normal(2, 9, 6), lora.weight
    before, bits = lora.eval()(x), lora.weight.detach().clone()
    lora.merge()
    lora.merge()
    assert lora.weight is weight
    torch.testing.assert_close(lora.weight, bits + lora.delta(), rtol=0, atol=0)
    torch.testing.assert_close(lora(x), before, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(lora.train()(x), before, rtol=2e-6, atol=2e-6)
    lora.unmerge()
    lora.unmerge()
    assert torch.equal(lora.weight, bits)
    assert torch.equal(lora.eval()(x), before)
    assert set(lora.state_dict()) == {"weight", "bias", "A", "B"}


@pytest.mark.parametrize("name", ["random_vit", "random_resnet"])
def test_attached_pairs_change_nothing_until_they_are_trained(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = unfused(request.getfixturevalue(name))
    before = outputs(model)
    pairs = attach_lora(model, generator=generator())
    for got, expected in zip(outputs(model), before, strict=True):
        assert torch.equal(got, expected)
    trained = parameters(pairs)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
    loss = torch.stack([x.sin().sum() for x in outputs(model)]).sum()
    gradients = torch.autograd.grad(loss, list(trained.values()))
    for path, gradient in zip(trained, gradients, strict=True):
        assert bool(gradient.any()) == path.endswith(".B"), path
    shaken(pairs)
    for got, expected in zip(outputs(model), before, strict=True):
        assert not torch.allclose(got, expected)


def test_a_folded_model_is_a_stock_model_again(random_vit: Path) -> None:
    model = unfused(random_vit)
    stock = copy.deepcopy(model)
    fuse(stock)
    shaken(attach_lora(model, matrices=("q", "v", "o", "fc1", "fc2"), generator=generator()))
    expected = outputs(model)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat.", "a photo of dogs."])
    torch.testing.assert_close(model.encode_text(tokens), expected[1], rtol=2e-6, atol=2e-6)
    with pytest.raises(UserError, match=r"plain matrices only; .*attn.q_proj is a LoRA; fold"):
        fuse(model)
    fold(model)
    for got, wanted in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=5e-6, atol=5e-6)
    fuse(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    assert model.state_dict().keys() == stock.state_dict().keys()
    torch.testing.assert_close(model.encode_text(tokens), expected[1], rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("patch", [16, 32])
def test_a_vit_b_has_184320_parameters_in_pairs(patch: int) -> None:
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": patch}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    with torch.device("meta"):
        model = open_clip.CLIP(512, vision, text)
    unfuse(model)
    trained = parameters(attach_lora(model, generator=generator()))
    assert sum(p.numel() for p in trained.values()) == 184_320
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


def test_pairs_come_text_first_block_by_block_in_one_order_of_matrices(random_vit: Path) -> None:
    pairs = attach_lora(unfused(random_vit), matrices=("fc2", "q", "o"), generator=generator())
    text = [
        f"transformer.resblocks.{i}.{matrix}"
        for i in range(2)
        for matrix in ("attn.q_proj", "attn.out_proj", "mlp.c_proj")
    ]
    assert list(pairs) == text + [f"visual.{path}" for path in text]
    assert all(pair.A.shape[1] == pair.in_features for pair in pairs.values())


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
def test_positions_of_12_blocks_are_the_published_ones(position: Any, numbers: range) -> None:
    pairs = attach_lora(
        deep(12, 2), towers="text", matrices=("k",), position=position, generator=generator()
    )
    assert list(pairs) == [f"transformer.resblocks.{i}.attn.k_proj" for i in numbers]


@pytest.mark.parametrize("parts", [("all",), ("half-bottom", "half-up"), ("bottom", "mid", "up")])
def test_positions_of_any_depth_cover_it_and_none_is_empty(parts: tuple[str, ...]) -> None:
    for depth in range(1, 50):
        chosen = [blocks_of(part, depth) for part in parts]
        assert all(chosen)
        assert {i for blocks in chosen for i in blocks} == set(range(depth))
        for before, after in pairwise(chosen):
            assert 0 <= before.stop - after.start <= (depth % len(parts) > 0)


@pytest.mark.parametrize("position", ["all", "bottom", "mid", "half-up"])
def test_the_one_attention_of_a_resnet_is_at_every_position(
    random_resnet: Path, position: Any
) -> None:
    pairs = attach_lora(
        unfused(random_resnet),
        towers="image",
        matrices=("q", "k", "v", "o"),
        position=position,
        generator=generator(),
    )
    assert list(pairs) == [f"visual.attnpool.{x}_proj" for x in "qkvc"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"towers": "vision"}, "unknown towers 'vision'"),
        ({"position": "top"}, "unknown position 'top'; known: all, bottom"),
        ({"matrices": ("q", "x")}, "unknown matrix 'x'"),
        ({"matrices": ()}, "no matrix to adapt; give one or more of q, k, v, o, fc1, fc2"),
        ({"rank": 0}, "rank must be 1 or more; got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"scaling": "none"}, "unknown scaling 'none'"),
    ],
)
def test_bad_settings_are_refused(random_vit: Path, changes: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        attach_lora(unfused(random_vit), generator=generator(), **changes)


def test_places_that_are_not_there_are_refused(random_vit: Path, random_resnet: Path) -> None:
    with pytest.raises(UserError, match="ResNet's image tower has no matrix fc1; choose of q, k"):
        attach_lora(unfused(random_resnet), matrices=("q", "fc1"), generator=generator())
    fused = load(f"local-dir:{random_vit}").model
    with pytest.raises(UserError, match=r"attn\.q_proj is a NoneType; unfuse the model"):
        attach_lora(fused, generator=generator())
    twice = unfused(random_vit)
    attach_lora(twice, generator=generator())
    with pytest.raises(
        UserError, match=r"attn\.q_proj is a LoRA; unfuse the model, and attach once"
    ):
        attach_lora(twice, generator=generator())


def test_autocast_keeps_the_factors_in_single_precision(random_vit: Path) -> None:
    model = unfused(random_vit)
    pairs = shaken(attach_lora(model, dropout=0.25, generator=generator()))
    exact = outputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        rough = outputs(model)
    for got, expected in zip(rough, exact, strict=True):
        assert (got.float() - expected).norm() < 0.05 * expected.norm()
    torch.stack([x.float().sum() for x in rough]).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in parameters(pairs).values():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def golden(shared: Path) -> Path:
    return shared / "golden" / "clip_lora_official_format.pt"


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    return torch.equal(left, right) if isinstance(left, Tensor) else bool(left == right)


def test_an_official_file_is_read_and_written_back_the_same(shared: Path, tmp_path: Path) -> None:
    official = read_official(golden(shared))
    assert (official.rank, official.alpha, official.towers) == (2, 1, "both")
    assert (official.matrices, official.position) == (("q", "k", "v"), "all")
    raw = torch.load(golden(shared), map_location="cpu", weights_only=True)
    for name, layer, matrix in (
        ("transformer.resblocks.0.attn.q_proj", "layer_0", "q_proj"),
        ("transformer.resblocks.11.attn.v_proj", "layer_11", "v_proj"),
        ("visual.transformer.resblocks.0.attn.k_proj", "layer_12", "k_proj"),
        ("visual.transformer.resblocks.11.attn.v_proj", "layer_23", "v_proj"),
    ):
        for factor in ("A", "B"):
            theirs = raw["weights"][layer][matrix][f"w_lora_{factor}"]
            assert torch.equal(official.weights[f"{name}.{factor}"], theirs)
    assert sum(tensor.numel() for tensor in official.weights.values()) == 184_320
    write_official(tmp_path / "again.pt", official)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert equal(again, raw)


def test_an_official_file_fits_a_vit_b(shared: Path) -> None:
    official = read_official(golden(shared))
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 10, "width": 512, "heads": 8, "layers": 12}
    with torch.device("meta"):
        model = open_clip.CLIP(512, vision, text)
    unfuse(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to_empty(device="cpu")
    pairs = attach_lora(model, generator=generator())
    load_weights(pairs, official.weights)
    for name, parameter in parameters(pairs).items():
        assert torch.equal(parameter, official.weights[name])


def trained(model: Any, **settings: Any) -> Official:
    pairs = shaken(attach_lora(model, rank=3, alpha=2.0, generator=generator(), **settings))
    return Official(
        3,
        2.0,
        settings.get("towers", "both"),
        settings.get("matrices", ("q", "k", "v")),
        settings.get("position", "all"),
        parameters(pairs),
    )


@pytest.mark.parametrize(
    ("depths", "settings", "n_layers"),
    [
        ((12, 12), {}, 24),
        ((12, 15), {}, 27),
        ((12, 12), {"position": "half-up", "matrices": ("v", "o")}, 12),
        ((12, 12), {"position": "mid", "towers": "image"}, 4),
        ((2, 5), {"towers": "image", "matrices": ("q",)}, 5),
        ((12, 2), {"towers": "text"}, 12),
    ],
)
def test_what_was_trained_here_survives_an_official_file(
    tmp_path: Path, depths: tuple[int, int], settings: dict[str, Any], n_layers: int
) -> None:
    ours = trained(deep(*depths), **settings)
    write_official(tmp_path / "lora.pt", ours)
    content = torch.load(tmp_path / "lora.pt", weights_only=True)
    assert list(content["weights"]) == [f"layer_{i}" for i in range(n_layers)]
    assert content["metadata"]["encoder"] in ("both", "text", "vision")
    if "o" in ours.matrices:
        assert list(content["weights"]["layer_0"]) == ["v_proj", "proj"]
    back = read_official(tmp_path / "lora.pt")
    assert (back.rank, back.alpha, back.towers) == (3, 2.0, ours.towers)
    assert (back.matrices, back.position) == (ours.matrices, ours.position)
    assert list(back.weights) == list(ours.weights)
    assert all(torch.equal(back.weights[name], ours.weights[name]) for name in ours.weights)


@pytest.mark.parametrize(
    ("depths", "settings"),
    [((2, 2), {}), ((12, 24), {"position": "bottom"}), ((24, 12), {"towers": "text"})],
)
def test_blocks_that_an_official_file_cannot_name_are_not_written(
    tmp_path: Path, depths: tuple[int, int], settings: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"towers with 12 blocks, and nothing else; .* not fit"):
        write_official(tmp_path / "lora.pt", trained(deep(*depths), **settings))
    assert not list(tmp_path.iterdir())


def test_matrices_of_the_mlp_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown matrix of CLIP-LoRA's files 'fc1'"):
        write_official(tmp_path / "lora.pt", trained(deep(), matrices=("q", "fc1")))


@functools.cache
def whole() -> Official:
    return trained(deep())


def damage(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_official(path, whole())
        content = torch.load(path, weights_only=True)
        torch.save(change(content) or content, path)

    return write


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: None, "is not one of CLIP-LoRA's files .*No such file"),
        (lambda path: path.write_bytes(b""), "is not one of CLIP-LoRA's files"),
        (lambda path: path.write_bytes(b"PK\3\4 no archive"), "is not one of CLIP-LoRA's files"),
        (lambda path: torch.save(Path("x"), path), "is not one of CLIP-LoRA's files"),
        (lambda path: torch.save(torch.zeros(3), path), "is not one of CLIP-LoRA's files"),
        (damage(lambda c: {"weights": c["weights"]}), "files .'metadata'.; expected a .pt with"),
        (damage(lambda c: c["metadata"].update(encoder="audio")), "unknown encoder 'audio'"),
        (damage(lambda c: c["metadata"].update(position="top3")), "unknown position 'top3'"),
        (damage(lambda c: c["metadata"].update(params=["z"])), "unknown matrix .* 'z'"),
        (damage(lambda c: c["metadata"].update(r=4)), r"rank 4 in layer_0, q_proj; got \(3, 8\)"),
        (damage(lambda c: c["weights"]["layer_3"].clear()), "in layer_3, q_proj; got nothing"),
        (damage(lambda c: c["weights"]["layer_3"].pop("k_proj").clear()), "layer_3, k_proj; got"),
    ],
)  # fmt: skip
def test_files_that_are_none_of_theirs_are_refused(
    tmp_path: Path, write: Callable[[Path], None], match: str
) -> None:
    write(tmp_path / "lora.pt")
    with pytest.raises(UserError, match=match):
        read_official(tmp_path / "lora.pt")


def test_pairs_of_which_nothing_was_saved_have_no_effect(random_vit: Path) -> None:
    part, whole = unfused(random_vit), unfused(random_vit)
    saved = parameters(shaken(attach_lora(part, position="up", generator=generator())))
    pairs = shaken(attach_lora(whole, generator=generator(1)))
    load_weights(pairs, saved)
    for got, expected in zip(outputs(whole), outputs(part), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rank": 3}, r"saved as \(3, 8\); the model has \(2, 8\)"),
        ({"matrices": ("q", "o")}, r"out_proj.A was saved as .* the model has no such pair"),
    ],
)
def test_weights_without_a_place_are_refused(
    random_vit: Path, settings: dict[str, Any], match: str
) -> None:
    saved = parameters(attach_lora(unfused(random_vit), generator=generator(), **settings))
    pairs = attach_lora(unfused(random_vit), generator=generator())
    with pytest.raises(UserError, match=match):
        load_weights(pairs, saved)
