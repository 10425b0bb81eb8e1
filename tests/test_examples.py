"""The scripts in examples/ run as they stand, on the bundled digits and the tiny CLIP."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import main
from fewshot import METHODS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def main_of(name: str) -> Callable[..., Any]:
    main: Callable[..., Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)["main"]
    return main


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("features")
    assert main(["extract", "--dataset", "digits", "--model", "tiny", "--store", str(root)]) == 0
    return str(root / "digits" / "tiny.h5")


def test_every_example_is_run_here() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_photos", "reproduce_gda", "add_a_method"}


def test_shots_bring_gda_above_zero_shot(store: str) -> None:
    means = main_of("reproduce_gda")(store, shots=(4,))
    assert 0.8 < means[0] < means[4] < 1


def test_a_method_of_ones_own_runs_beside_the_others(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "blend", METHODS["gda"])  # so that it is taken out again
    accuracies = main_of("add_a_method")(store)
    assert list(accuracies) == ["zero-shot", "blend", "gda"]
    assert accuracies["blend"] > accuracies["zero-shot"]


def test_a_folder_of_photos_becomes_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--photos", "digits"]) == 0
    photos = sorted((tmp_path / "digits" / "zero").glob("*.png"))[:3]
    methods = ["zero-shot", "gda"]  # two of eighteen, for speed
    own_photos = main_of("own_photos")
    assert own_photos(tmp_path / "digits", photos, "tiny", methods) == ["zero"] * 3
