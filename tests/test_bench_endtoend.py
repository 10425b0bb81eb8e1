from pathlib import Path

import pytest

from cli import main
from fewshot.results.log import read

BENCH = ["bench", "--datasets", "digits", "--models", "tiny", "--shots", "1", "--seeds", "1,2"]
SHORT = ["--set", "coop.epochs=1", "--set", "clip-lora.iterations_per_shot=1"]


@pytest.fixture(autouse=True)
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a store of the digits."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSHOT_STORE", "FEWSHOT_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert main(["extract", "--dataset", "digits", "--model", "tiny"]) == 0


def test_end_to_end_methods_stand_beside_cached_ones_sweeps_included(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*BENCH, "--methods", "gda,coop,clip-lora", *SHORT, "--set", "clip-lora.rank=1,2"]
    assert main(asked) == 0
    results = read(Path("runs/bench/results.jsonl"))
    assert sorted((r.method, r.hyperparameters.get("rank"), r.seed) for r in results) == [
        ("clip-lora", 1, 1), ("clip-lora", 1, 2), ("clip-lora", 2, 1), ("clip-lora", 2, 2),
        ("coop", None, 1), ("coop", None, 2), ("gda", None, 1), ("gda", None, 2),
    ]  # fmt: skip
    assert {r.setting for r in results} == {"few-shot"}
    assert all(r.predictions and Path(r.predictions).exists() for r in results)
    capsys.readouterr()
    assert main(asked) == 0
    assert "8 cells, 8 of them done before" in capsys.readouterr().err


def test_all_methods_are_the_cached_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--methods", "all", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "gda digits" in out
    assert "coop" not in out


@pytest.mark.parametrize("more", [["--protocol", "base-to-new"], ["--imbalance", "step:2"]])
def test_other_protocols_are_refused(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    assert main([*BENCH, "--methods", "coop", *more]) == 2
    assert "coop is trained end to end, from few shots" in capsys.readouterr().err


def test_a_cell_that_fails_names_the_command_that_repeats_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*BENCH, "--methods", "gda,vpt-deep", "--set", "vpt-deep.lr=1e30", "--seeds", "1"]
    asked += ["--set", "vpt-deep.iterations_per_shot=3"]
    assert main(asked) == 1
    err = capsys.readouterr().err
    assert "the loss is" in err
    assert "fewshot train vpt-deep --model tiny --dataset digits --shots 1 --seed 1" in err
    assert [r.method for r in read(Path("runs/bench/results.jsonl"))] == ["gda"]
