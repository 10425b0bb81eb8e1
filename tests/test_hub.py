"""Adapters on the Hugging Face hub, and LoRA pairs as PEFT has them. Nothing is fetched here."""

import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from cache.errors import UserError
from cache.models import offline as client
from cache.models.encoder import Encoder
from cli import main
from fewshot import load_adapter, predict
from fewshot.adapters import hub
from fewshot.adapters.export import hub_folder
from fewshot.adapters.export.exporting import export
from fewshot.inspection import verify
from tests.toy_adapters import fitted_adapter, trained_adapter


@pytest.fixture
def path(encoder: Encoder, tmp_path: Path) -> Path:
    fitted_adapter(encoder, "gda").save(tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph takes seconds, and has tests of its own."""

    def refuse(*_: object) -> str:
        raise UserError("PyTorch makes no graph of it")

    monkeypatch.setattr(hub_folder, "write_onnx", refuse)


@pytest.fixture
def cached(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with the adapter in it, and no hub."""
    cache = tmp_path / "hub"
    repository = cache / "models--ada--pets"
    for name, at in (("main", "a" * 40), ("v1", "b" * 40)):
        snapshot = repository / "snapshots" / at
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(at)
        (snapshot / "adapter.safetensors").write_bytes(path.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


def test_the_folder_holds_the_adapter_and_a_card_for_the_hub(path: Path, no_onnx: None) -> None:
    folder = export(path, "hub")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "adapter.safetensors", "classes.json", "export.json",
    ]  # fmt: skip
    assert (folder / "adapter.safetensors").read_bytes() == path.read_bytes()
    card = (folder / "README.md").read_text(encoding="utf-8")
    matter = card.split("---\n")[1]
    assert "library_name: fewshot-clip\npipeline_tag: image-classification\n" in matter
    assert "fewshot predict hf-hub:USER/NAME photo.jpg" in card
    assert "There is no `model.onnx` beside it: PyTorch makes no graph of it." in card


def test_the_folder_holds_a_graph_where_there_is_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(adapter: object, encoder: object, folder: Path) -> str:
        (folder / "model.onnx").write_bytes(b"graph")
        return "How to run the graph."

    monkeypatch.setattr(hub_folder, "write_onnx", write)
    folder = export(path, "hub")
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert "How to run the graph." in (folder / "README.md").read_text(encoding="utf-8")


def test_a_graph_that_fails_its_check_is_not_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(adapter: object, encoder: object, folder: Path) -> str:
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "model.onnx.data").write_bytes(b"weights")
        raise UserError("logits differ")

    monkeypatch.setattr(hub_folder, "write_onnx", write)
    folder = export(path, "hub")
    assert not list(folder.glob("model.onnx*"))
    assert "There is no `model.onnx` beside it: logits differ." in (folder / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", ["hf-hub:ada/pets", "hf-hub:ada/pets@v1"])
def test_an_adapter_of_the_hub_predicts_as_its_file_does(
    cached: Path, path: Path, tmp_path: Path, name: str
) -> None:
    del cached
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    there = predict(name, tmp_path / "red.png")
    assert there == predict(path, tmp_path / "red.png")
    assert verify(name) == "whole and unchanged"
    assert load_adapter(name).classnames == load_adapter(path).classnames


def test_an_adapter_of_the_hub_is_exported_beside_nothing(
    cached: Path, no_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cached
    monkeypatch.chdir(tmp_path)
    assert export("hf-hub:ada/pets", "hub") == Path("pets-hub")


def test_what_cannot_be_fetched_is_said_in_a_line(
    cached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del cached
    assert main(["predict", "hf-hub:ada/cars", "x.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot get adapter.safetensors of hf-hub:ada/cars (the hub is out of reach" in line
    assert main(["predict", "hf-hub:cars", "x.png"]) == 2
    assert "is named USER/NAME, such as ada/red-pandas" in capsys.readouterr().err
    assert main(["predict", "hf-hub:ada/pets@v2", "x.png"]) == 2
    assert "cannot get adapter.safetensors of hf-hub:ada/pets@v2" in capsys.readouterr().err


def test_a_repository_without_an_adapter_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError("404: no adapter.safetensors\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    monkeypatch.setattr(hub, "stay_offline_if_cut_off", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"of hf-hub:a/b \(404: no adapter.safetensors\); connect"):
        load_adapter("hf-hub:a/b")


class FakeHub:
    """The hub's client, which keeps what it was asked for."""

    calls: list[tuple[str, dict[str, Any]]]
    refuses: str = ""

    def create_repo(self, repository: str, **how: Any) -> str:
        self.calls.append(("create", {"repository": repository, **how}))
        return f"https://huggingface.co/{repository}"

    def upload_folder(self, **how: Any) -> None:
        if self.refuses:
            raise OSError(self.refuses)
        self.calls.append(("upload", how))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(FakeHub, "calls", [], raising=False)
    return FakeHub


def test_a_folder_is_pushed_to_a_private_repository(
    path: Path, no_onnx: None, fake: type[FakeHub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(path), "--to", "hub", "--push", "ada/pets"]) == 0
    assert fake.calls == [
        ("create", {"repository": "ada/pets", "private": True, "exist_ok": True}),
        ("upload", {"repo_id": "ada/pets", "folder_path": str(path.with_name("pets-hub"))}),
    ]
    assert "pushed to https://huggingface.co/ada/pets" in capsys.readouterr().err


def test_a_push_that_fails_leaves_the_folder_and_says_how_to_go_on(
    path: Path, no_onnx: None, fake: type[FakeHub], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fake, "refuses", "no route to host")
    assert main(["export", str(path), "--to", "hub", "--push", "ada/pets"]) == 2
    folder = path.with_name("pets-hub")
    assert (folder / "README.md").is_file()
    assert f"(no route to host); {folder} is written: push it with `hf upload ada/pets" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--to", "hub", "--push", "ada/pets"), "no token of the Hugging Face hub to push to ada"),
        (("--to", "hub", "--push", "pets"), "is named USER/NAME"),
        (("--to", "onnx", "--push", "ada/pets"), "--push uploads a folder for the hub; give --to"),
    ],
)
def test_what_cannot_be_pushed_is_not_even_written(
    path: Path, more: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["export", str(path), *more]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == ["pets.safetensors"]


def test_without_a_network_the_client_looks_at_its_cache_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(*_: object) -> None:
        raise OSError("no such name")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(client, "getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    client.stay_offline_if_cut_off()
    assert constants.HF_HUB_OFFLINE is True


def test_pairs_have_peft_s_names_and_its_scale_is_ours(encoder: Encoder, tmp_path: Path) -> None:
    adapter = trained_adapter(encoder, "clip-lora", rank="3", alpha="2", matrices="q,o,fc1")
    folder = export(adapter, "peft", tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = {}
    for ours, theirs in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
        for block in range(2):
            for a, b in (
                ("attn.q_proj", "self_attn.q_proj"),
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
            ):
                there = f"{theirs}.encoder.layers.{block}.{b}"
                modules[there] = f"{ours}.resblocks.{block}.{a}"
    assert set(config["target_modules"]) == set(modules)
    assert set(tensors) == {
        f"base_model.model.{there}.lora_{factor}.weight" for there in modules for factor in "AB"
    }
    for there, ours in modules.items():
        for factor in "AB":
            got = tensors[f"base_model.model.{there}.lora_{factor}.weight"]
            assert torch.equal(got, adapter.tensors[f"{ours}.{factor}"])
    assert (config["peft_type"], config["r"], config["use_rslora"]) == ("LORA", 3, True)
    scale = config["lora_alpha"] / math.sqrt(config["r"])  # PEFT's, with use_rslora
    assert scale == pytest.approx(2 / math.sqrt(3))
    assert config["base_model_name_or_path"] is None  # of weights that transformers may not have


@pytest.mark.parametrize(
    ("method", "settings"),
    [("krona", {}), ("adaptformer", {}), ("clip-lora", {"towers": "image", "head": "trained"})],
)
def test_peft_takes_pairs_alone(
    encoder: Encoder, tmp_path: Path, method: str, settings: dict[str, str]
) -> None:
    other = "--to onnx" if method == "adaptformer" else "--to open_clip or --to onnx"
    with pytest.raises(
        UserError, match=f"LoRA pairs hold what clip-lora learns in .*; use {other}$"
    ):
        export(trained_adapter(encoder, method, **settings), "peft", tmp_path / "out")
