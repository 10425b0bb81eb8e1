from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fewshot
from cache.store import FeatureStore
from cli import main
from fewshot.adapters.description import describe
from fewshot.adapters.fitted_adapter import fit_and_save
from tests.toy_adapters import made_of


def test_inspect_tells_all_of_an_adapter_and_verify_reads_it(
    pets: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    adapter, _ = fit_and_save(pets, fewshot.GDA(alpha=2.0), path, shots=4, fixed=("alpha",))
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == adapter.summary()
    for line in (
        "     0  ant  (4 images)",
        "  4, of ant: ant",
        "  alpha: 2.0",
        "  dataset: pets",
        "  16 images: folds of the images learned from",
        "  weight: (4, 8) torch.float32",
    ):
        assert line in lines
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: whole and unchanged\n"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["verify", str(path)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_inspect_names_the_first_of_many_classes(pets: FeatureStore, tmp_path: Path) -> None:
    adapter = replace(made_of(pets, "zero-shot"), classnames=tuple(f"c{i}" for i in range(30)))
    text = describe(adapter)
    assert "  19  c19" in text
    assert "  and 10 more" in text
    assert "none: there were no labeled images to judge by" in text


def test_inspect_lists_tensors_by_name_in_whatever_order_they_come(pets: FeatureStore) -> None:
    tensors = {f"layer.{i}": torch.zeros(i) for i in (2, 0, 3, 1)}
    lines = describe(replace(made_of(pets, "zero-shot"), tensors=tensors)).splitlines()
    assert lines[-4:] == [f"  layer.{i}: ({i},) torch.float32" for i in range(4)]
