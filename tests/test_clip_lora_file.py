"""Files of CLIP-LoRA's authors: read, written, refused."""

import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.datasets.resolving import resolve_folder
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from cli import main
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.clip_lora_file import depths_of, read_clip_lora, write_clip_lora
from fewshot.adapters.export.exporting import export
from fewshot.adapters.import_clip_lora import import_clip_lora
from fewshot.adapters.opened_adapter import attached
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from tests.toy_adapters import trained_adapter

B16 = {"text": 12, "image": 12}
L14 = {"text": 12, "image": 24}
# Which blocks the authors' tables name for either tower of ViT-B/16, and for ViT-L/14's images.
PUBLISHED = {
    "bottom": [0, 1, 2, 3],
    "mid": [4, 5, 6, 7],
    "up": [8, 9, 10, 11],
    "half-bottom": [0, 1, 2, 3, 4, 5],
    "half-up": [6, 7, 8, 9, 10, 11],
    "all": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
}
PREFIX = {"text": "transformer.resblocks", "image": "visual.transformer.resblocks"}
OURS = {
    "q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "v_proj": "attn.v_proj",
    "proj": "attn.out_proj",
}  # fmt: skip


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def content(
    n_layers: int, position: str, encoder: str = "both", params: tuple[str, ...] = ("q", "v")
) -> dict[str, Any]:
    """What the authors' code would save, with a width of 4 and a rank of 2."""
    theirs = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
    layers = {
        f"layer_{i}": {
            theirs[p]: {"w_lora_A": drawn(9 * i + j, 2, 4), "w_lora_B": drawn(9 * i + j, 4, 2)}
            for j, p in enumerate(params)
        }
        for i in range(n_layers)
    }
    about = {"r": 2, "alpha": 3, "encoder": encoder, "params": list(params), "position": position}
    return {"weights": layers, "metadata": about}


def saved(path: Path, what: Any) -> Path:
    torch.save(what, path)
    return path


def blocks(factors: dict[str, Tensor], tower: str) -> list[int]:
    start = f"{PREFIX[tower]}."
    return sorted({int(n[len(start) :].split(".")[0]) for n in factors if n.startswith(start)})


@pytest.mark.parametrize("position", PUBLISHED)
@pytest.mark.parametrize("encoder", ["both", "text", "vision"])
def test_layers_are_the_published_blocks_text_before_image(
    tmp_path: Path, position: str, encoder: str
) -> None:
    numbers = PUBLISHED[position]
    towers = {"both": ["text", "image"], "text": ["text"], "vision": ["image"]}[encoder]
    what = content(len(numbers) * len(towers), position, encoder, ("q", "o"))
    settings, factors = read_clip_lora(saved(tmp_path / "l.pt", what), B16)
    assert settings == {
        "rank": 2, "alpha": 3.0, "towers": {"vision": "image"}.get(encoder, encoder),
        "matrices": "q,o", "position": position,
    }  # fmt: skip
    expected = {}
    for layer, (tower, i) in enumerate((t, i) for t in towers for i in numbers):
        for matrix, both in what["weights"][f"layer_{layer}"].items():
            for factor in "AB":
                name = f"{PREFIX[tower]}.{i}.{OURS[matrix]}.{factor}"
                expected[name] = both[f"w_lora_{factor}"]
    assert factors.keys() == expected.keys()
    assert all(torch.equal(factors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("position", "n_layers", "image", "covering"),
    [
        ("all", 12 + 21, list(range(21)), "all"),  # the authors' table ends there
        ("half-bottom", 6 + 6, list(range(6)), "half-bottom"),
        ("half-up", 6 + 6, list(range(6, 12)), "all"),
        ("half-bottom", 6 + 12, list(range(12)), "half-bottom"),  # as many as half of the depth
        ("half-up", 6 + 12, list(range(12, 24)), "half-up"),
        ("all", 12 + 24, list(range(24)), "all"),
    ],
)
def test_the_number_of_layers_says_which_of_24_blocks_a_position_means(
    tmp_path: Path, position: str, n_layers: int, image: list[int], covering: str
) -> None:
    path = saved(tmp_path / "l.pt", content(n_layers, position))
    settings, factors = read_clip_lora(path, L14)
    assert blocks(factors, "image") == image
    assert blocks(factors, "text") == PUBLISHED[position]
    assert settings["position"] == covering


@pytest.mark.parametrize(
    ("position", "encoder", "numbers"),
    [
        ("top", "vision", [11]),
        ("top1", "text", [11]),
        ("top2", "text", [10, 11]),
        ("top3", "both", [9, 10, 11]),
    ],
)
def test_the_last_blocks_have_positions_too(
    tmp_path: Path, position: str, encoder: str, numbers: list[int]
) -> None:
    n_towers = 1 + (encoder == "both")
    path = saved(tmp_path / "l.pt", content(n_towers * len(numbers), position, encoder))
    settings, factors = read_clip_lora(path, B16)
    assert settings["position"] == "up"
    for tower, code in (("text", "text"), ("image", "vision")):
        assert blocks(factors, tower) == (numbers if encoder in (code, "both") else [])


def test_layers_that_no_block_takes_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "l.pt", content(6 + 12, "half-bottom"))
    with pytest.raises(UserError, match="18 layers; position half-bottom of a model with 12 text"):
        read_clip_lora(path, B16)
    path = saved(tmp_path / "l.pt", content(11, "all", "text"))
    with pytest.raises(UserError, match=r"11 layers; .* has 12; give --model the one it was"):
        read_clip_lora(path, B16)


def damage(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        what = content(24, "all")
        saved(path, change(what) or what)

    return write


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: None, "is not one of CLIP-LoRA's files: No such file"),
        (lambda path: path.write_bytes(b""), "CLIP-LoRA's files: it is cut short, or"),
        (lambda path: path.write_bytes(b"PK\3\4 no archive"), "files: it is cut short, or"),
        (lambda path: torch.save(Path("x"), path), "which may be code and is not run; expected"),
        (lambda path: path.write_bytes(pickle.dumps(Path("x"))), "is not run; expected a .pt"),
        (lambda path: os.truncate(saved(path, content(24, "all")), 9_000), "it is cut short, or"),
        (lambda path: torch.save(torch.zeros(3), path), "is not one of CLIP-LoRA's files"),
        (damage(lambda c: {"weights": c["weights"]}), "files: it has no 'metadata'; expected a"),
        (damage(lambda c: c["metadata"].update(alpha=math.nan)), "its alpha is nan; expected"),
        (damage(lambda c: c["metadata"].update(params=[])), "its params name no matrix"),
        (damage(lambda c: c["metadata"].update(params=["q"])), "holds v_proj beside the params"),
        (
            damage(lambda c: c["weights"]["layer_1"]["v_proj"].update(w_lora_B=drawn(1, 4, 2) / 0)),
            "should hold finite numbers; w_lora_B in layer_1, v_proj, has",
        ),
        (damage(lambda c: c["metadata"].update(encoder="audio")), "unknown encoder 'audio'"),
        (damage(lambda c: c["metadata"].update(encoder=["text"])), "is not one of CLIP-LoRA's"),
        (damage(lambda c: c["metadata"].update(position="low")), "unknown position .* 'low'"),
        (damage(lambda c: c["metadata"].update(params=["z"])), "unknown matrix .* 'z'"),
        (damage(lambda c: c["metadata"].update(r=4)), r"rank 4 in layer_0, q_proj; got \(2, 4\)"),
        (damage(lambda c: c["weights"]["layer_3"].clear()), "in layer_3, q_proj; got nothing"),
        (damage(lambda c: c["weights"].update(layer_3=7)), "in layer_3, q_proj; got nothing"),
    ],
)  # fmt: skip
def test_files_that_are_none_of_theirs_are_refused(
    tmp_path: Path, write: Callable[[Path], None], match: str
) -> None:
    write(tmp_path / "l.pt")
    with pytest.raises(UserError, match=match):
        read_clip_lora(tmp_path / "l.pt", B16)


def test_a_file_of_the_authors_is_read_and_written_back_the_same(
    shared: Path, tmp_path: Path
) -> None:
    theirs = shared / "golden" / "clip_lora_official_format.pt"
    settings, factors = read_clip_lora(theirs, B16)
    assert sum(tensor.numel() for tensor in factors.values()) == 184_320
    write_clip_lora(tmp_path / "again.pt", CLIPLoRA(**settings), factors, B16)
    raw, again = (
        torch.load(path, map_location="cpu", weights_only=True)
        for path in (theirs, tmp_path / "again.pt")
    )
    assert raw["metadata"] == again["metadata"]
    assert list(raw["weights"]) == list(again["weights"])
    for layer, matrices in raw["weights"].items():
        for matrix, both in matrices.items():
            for factor, tensor in both.items():
                assert torch.equal(again["weights"][layer][matrix][factor], tensor)


def test_what_has_no_place_in_such_a_file_is_refused(tmp_path: Path) -> None:
    names = [f"visual.transformer.resblocks.{i}.attn.q_proj.{f}" for i in range(24) for f in "AB"]
    factors = {name: torch.ones(1, 1) for name in names}
    method, path = CLIPLoRA(towers="image", matrices="q"), tmp_path / "l.pt"
    with pytest.raises(UserError, match=r"resblocks.21.attn.q_proj has no place .* position all"):
        write_clip_lora(path, method, factors, L14)
    last = {name for name in names if int(name.split(".")[3]) >= 21}
    without = {name: t * (name not in last) for name, t in factors.items()}
    write_clip_lora(path, method, without, L14)
    assert len(torch.load(path)["weights"]) == 21
    with pytest.raises(UserError, match=r"pairs beside q, k, v, o alone; .* some beside fc1"):
        write_clip_lora(path, replace(method, matrices="q,fc1"), factors, L14)
    with pytest.raises(UserError, match=r"alpha is an integer in CLIP-LoRA's files; got 1\.5"):
        write_clip_lora(path, replace(method, alpha=1.5), factors, L14)


def test_an_adapter_goes_out_and_comes_in_again_unchanged(
    encoder: Encoder, tmp_path: Path, draw_photos: Callable[..., Path]
) -> None:
    adapter = trained_adapter(encoder, "clip-lora", rank="3", alpha="2", matrices="q,o")
    folder = export(adapter, "clip-lora", tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "classes.json", "export.json", "lora_weights.pt",
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "--r 3 --alpha 2 --encoder both --params q o --position all" in card
    source = resolve_folder(draw_photos(1))
    back = import_clip_lora(folder / "lora_weights.pt", encoder, source)
    assert back.classnames == source.classnames
    assert back.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(back.tensors[name], t) for name, t in adapter.tensors.items())
    pixels = drawn(1, 2, 3, 32, 32)
    with torch.no_grad():
        (one, _), (other, _) = (attached(a, Clip.of(encoder)) for a in (adapter, back))
        assert one.images is not None
        assert other.images is not None
        assert torch.equal(one.images(pixels), other.images(pixels))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("krona", {"factor": "4"}), ("clip-lora", {"towers": "image", "head": "trained"})],
)
def test_what_is_no_pair_of_clip_lora_is_not_exported(
    encoder: Encoder, tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    adapter = trained_adapter(encoder, name, **settings)
    with pytest.raises(UserError, match="hold what clip-lora learns in the towers, and not"):
        export(adapter, "clip-lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_resnet_and_another_width_are_refused(
    encoder: Encoder, random_resnet: Path, tmp_path: Path, draw_photos: Callable[..., Path]
) -> None:
    with pytest.raises(
        UserError, match="a plain ViT; this model is a CLIP with a ModifiedResNet; use"
    ):
        depths_of(load(f"local-dir:{random_resnet}", device="cpu").model)
    path = saved(tmp_path / "l.pt", content(4, "all"))
    with pytest.raises(UserError, match=r"holds \(2, 4\) for .* has room for \(2, 8\); give --m"):
        import_clip_lora(path, encoder, resolve_folder(draw_photos(1)))


def test_the_command_makes_an_adapter_that_predicts(
    encoder: Encoder,
    random_vit: Path,
    tmp_path: Path,
    draw_photos: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, out = draw_photos(2), tmp_path / "adapter.safetensors"
    folder = export(trained_adapter(encoder, "clip-lora"), "clip-lora", tmp_path / "out")
    asked = ["--dataset", str(photos), "--model", f"local-dir:{random_vit}", "--save", str(out)]
    assert main(["import", str(folder / "lora_weights.pt"), *asked[:-2]]) == 2
    assert "CLIP-LoRA's own file needs --save" in capsys.readouterr().err
    assert main(["import", str(folder / "lora_weights.pt"), *asked]) == 0
    assert load_adapter(out).classnames == ("blue", "green", "red")
    assert main(["predict", str(out), str(photos / "red" / "000.jpg")]) == 0
    assert "000.jpg" in capsys.readouterr().out
