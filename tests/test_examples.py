"""The notebooks in examples/ run as they stand and print what they show."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fewshot import METHODS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits_store: Path) -> Path:
    """One folder for all notebooks, in which the digits are encoded already."""
    place = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(digits_store, place / "features")
    return place


def cells(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    found: list[dict[str, Any]] = notebook["cells"]
    assert len({cell["id"] for cell in found}) == len(found)
    return found


def run(name: str, place: Path) -> dict[str, Any]:
    """Run the cells of a notebook from top to bottom; the names that they leave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(place):
        for cell in cells(name):
            if cell["cell_type"] == "code":
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    exec("".join(cell["source"]), names)  # as Jupyter does
                shown = "".join(line for output in cell["outputs"] for line in output["text"])
                assert without_numbers(said.getvalue()) == without_numbers(shown)
    return names


def without_numbers(text: str) -> list[str]:
    """The lines with # for each number, which may differ a little from machine to machine."""
    return [" ".join(re.sub(r"\d+(\.\d+)?", "#", line).split()) for line in text.splitlines()]


def test_every_notebook_is_run_here() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.ipynb")}
    assert names == {"own_photos", "reproduce_a_table", "add_a_method"}


def test_a_folder_of_photos_becomes_a_classifier(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSHOT_STORE", raising=False)
    names = run("own_photos", place)
    assert (place / names["outcome"].adapter_path).is_file()
    assert names["found"].label == "five"


def test_shots_bring_each_method_above_zero_shot(place: Path) -> None:
    table = run("reproduce_a_table", place)["table"]
    zero_shot = table.pop("zero-shot")[0][0]
    assert 0.8 < zero_shot < min(cells[-1][0] for cells in table.values()) < 1


def test_a_method_of_ones_own_runs_beside_the_others(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "blend", METHODS["gda"])  # so that it is taken out again
    names = run("add_a_method", place)
    assert list(names["accuracies"]) == ["zero-shot", "blend", "gda"]
    assert names["accuracies"]["blend"] > names["accuracies"]["zero-shot"] == names["without"]
