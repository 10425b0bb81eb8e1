import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache.errors import UserError
from cache.location import model_name, store_path
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.models.weights_file import published_preprocessing, read_weights

ARCH = "Small-ViT"


@pytest.fixture
def weights(random_vit: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of a small architecture that open_clip knows meanwhile."""
    config = json.loads((random_vit / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, ARCH, config)
    return load_file(random_vit / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def reference(random_vit: Path) -> Encoder:
    return load(f"local-dir:{random_vit}", device="cpu")


@pytest.mark.parametrize("form", ["plain", "state_dict", "module", "safetensors"])
def test_weights_of_a_file_are_those_of_the_folder(
    form: str, weights: dict[str, Tensor], reference: Encoder, tmp_path: Path
) -> None:
    file = tmp_path / "own,tuned.pt"
    if form == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file(weights, file)
    else:
        prefix = "module." if form == "module" else ""
        named = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
        torch.save(named if form == "plain" else {"state_dict": named, "epoch": 3}, file)
    loaded = load(f"{ARCH}@{file}", device="cpu")
    assert loaded.identity["weights"] == reference.identity["weights"]
    assert loaded.identity["name"] == f"{ARCH}@{file}"
    torch.testing.assert_close(
        loaded.encode_text(["a dog"]), reference.encode_text(["a dog"]), rtol=0, atol=0
    )


def test_weights_of_another_architecture_are_told_by_the_first_that_differs(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "other.pt"
    for change, message in (
        ({"visual.proj": torch.zeros(64, 4)}, r"visual.proj is \(64, 4\) in the file and \(64, 16"),
        ({"stranger": torch.zeros(2)}, r"stranger is \(2,\) in the file and not there in the"),
    ):
        torch.save(weights | change, file)
        with pytest.raises(UserError, match=message) as caught:
            load(f"{ARCH}@{file}", device="cpu")
        assert "\n" not in str(caught.value)
    del weights["visual.proj"]
    torch.save(weights, file)
    with pytest.raises(UserError, match=r"visual.proj is not there in the file and \(64, 16\)"):
        load(f"{ARCH}@{file}", device="cpu")


class Harmful:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"print('no weights')", "it is no such file, or holds more than tensors"),
        (b"hello", r"weights\.pt: it is no such file, or holds"),  # a KeyError of unpickling
        (Harmful(), "it is no such file, or holds more than tensors"),
        ({"lr": 0.1}, "holds no weights by name"),
        ([torch.zeros(2)], "holds no weights by name"),
        ({}, "holds no weights by name"),
    ],
)
def test_what_is_no_file_of_weights_is_refused_in_one_line(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not Path("harm").exists()


def test_an_architecture_that_open_clip_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown architecture 'ViT-B-61'; did you mean 'ViT-B-16'"):
        load(f"ViT-B-61@{tmp_path / 'x.pt'}", device="cpu")


def test_an_architectures_preprocessing_is_that_of_all_its_published_weights() -> None:
    assert published_preprocessing("ViT-B-16-SigLIP") == {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    assert "mean" not in published_preprocessing("ViT-L-14")  # one tag of LAION's has its own
    assert published_preprocessing(ARCH) == {}


def test_stores_of_files_of_one_name_lie_apart(tmp_path: Path) -> None:
    paths = {store_path(tmp_path, "pets", f"ViT-B-32@{tmp_path / d / 'w.pt'}") for d in "ab"}
    assert len(paths) == 2
    assert all(path.name.startswith("ViT-B-32-w.pt-") for path in paths)
    assert model_name(" ViT-B-32@a,b.pt ") == "ViT-B-32@a,b.pt"
