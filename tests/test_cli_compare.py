import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import main
from fewshot.results.log import Result, read
from fewshot.results.prediction_files import read_predictions
from fewshot.results.significance import compare

SAVED = "runs/predictions"


def imported(dataset: str, seed: int) -> None:
    """A store of three classes that overlap, twenty train images each."""
    rng = np.random.default_rng(seed)
    directions = np.eye(3, 8)
    arrays: dict[str, Any] = {"text_features": directions + 0.3}
    for split, n in (("train", 60), ("test", 90)):
        labels = np.arange(n) % 3
        arrays[f"{split}_features"] = 2 * directions[labels] + 2 * rng.normal(size=(n, 8))
        arrays[f"{split}_labels"] = labels
    np.savez("f.npz", **arrays)
    assert main(["import", "f.npz", "--dataset", dataset, "--model", "m"]) == 0


def fit(method: str, *arguments: str, dataset: str = "mine", save: bool = True) -> None:
    saving = ["--save-predictions", SAVED] if save else []
    assert main(["fit", method, "--dataset", dataset, *arguments, *saving]) == 0


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two datasets and runs of three methods on them."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("FEWSHOT_STORE", raising=False)
        for seed, dataset in enumerate(("mine", "other")):
            imported(dataset, seed)
            fit("nearest-mean", "--shots", "1,4", "--seed", "1,2", dataset=dataset)
            fit("ridge", "--shots", "1,4", "--seed", "1,2", dataset=dataset)
            fit("zero-shot", dataset=dataset)
        fit("ridge", "--shots", "4", "--set", "penalty=30")
        fit("gda", "--shots", "4", save=False)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of that folder, to spoil."""
    shutil.copytree(ran / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """A function that compares and returns the JSON objects."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        assert main(["compare", *arguments, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def results(method: str, dataset: str, shots: int, seed: int) -> Result:
    """The first run of it, which is the one with its defaults."""
    return next(
        r
        for r in read(Path("runs/results.jsonl"))
        if (r.method, r.dataset, r.shots, r.seed) == (method, dataset, shots, seed)
    )


def test_methods_are_compared_wherever_both_ran(
    compared: Callable[..., list[dict[str, Any]]],
) -> None:
    lines = [c for c in compared("nearest-mean", "ridge") if "penalty" not in c["b"]]
    singles = [c for c in lines if c["n_pairs"] == 1]
    runs = [(d, k, s) for d in ("mine", "other") for k in (1, 4) for s in (1, 2)]
    assert sorted((c["dataset"], c["shots"], c["seed"]) for c in singles) == sorted(runs)
    for c in singles:
        a, b = (results(m, c["dataset"], c["shots"], c["seed"]) for m in ("nearest-mean", "ridge"))
        assert (c["accuracy_a"], c["accuracy_b"]) == (a.accuracy, b.accuracy)
        assert c["difference"] == pytest.approx(a.accuracy - b.accuracy)
        found = compare([(read_predictions(Path(a.predictions or "")),
                          read_predictions(Path(b.predictions or "")))])  # fmt: skip
        assert (c["p"], c["mid_p"], tuple(c["interval"])) == (found.p, found.mid_p, found.interval)
    pooled = [c for c in lines if c["n_pairs"] > 1]
    assert [(c["dataset"], c["shots"], c["seed"], c["n_pairs"]) for c in pooled] == [
        (None, 1, None, 4), (None, 4, None, 4), (None, None, None, 8)
    ]  # fmt: skip
    assert pooled[-1]["n_images"] == 180
    assert pooled[-1]["difference"] == pytest.approx(np.mean([c["difference"] for c in singles]))


def test_filters_leave_the_rest_out(compared: Callable[..., list[dict[str, Any]]]) -> None:
    asked = ("--dataset", "mine", "--shots", "4", "--seed", "1,2")
    lines = [c for c in compared("nearest-mean", "ridge", *asked) if "penalty" not in c["b"]]
    assert [(c["dataset"], c["shots"], c["seed"]) for c in lines] == [
        ("mine", 4, 1), ("mine", 4, 2), ("mine", 4, None)
    ]  # fmt: skip


def test_what_has_no_shots_meets_every_run(compared: Callable[..., list[dict[str, Any]]]) -> None:
    lines = compared("zero-shot", "nearest-mean", "--dataset", "other")
    singles = [c for c in lines if c["n_pairs"] == 1]
    assert [(c["shots"], c["seed"]) for c in singles] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert {c["accuracy_a"] for c in singles} == {results("zero-shot", "other", 0, 0).accuracy}


def test_a_method_meets_itself_with_other_settings(
    compared: Callable[..., list[dict[str, Any]]],
) -> None:
    [line] = compared("ridge", "ridge")
    assert line["a"].startswith("ridge: few-shot, m, tuned by cv")
    assert line["b"].startswith("ridge (penalty=30.0): few-shot, m, tuned by cv")
    assert (line["dataset"], line["shots"], line["seed"]) == ("mine", 4, 1)


def test_of_runs_of_the_same_thing_the_last_counts(
    compared: Callable[..., list[dict[str, Any]]],
) -> None:
    before = compared("nearest-mean", "zero-shot")
    file = Path("runs/results.jsonl")
    file.write_text(file.read_text() * 2)
    assert compared("nearest-mean", "zero-shot") == before


def test_two_files_are_compared(
    compared: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [results(m, "mine", 4, 1).predictions or "" for m in ("nearest-mean", "ridge")]
    [line] = compared(*files)
    by_name = [c for c in compared("nearest-mean", "ridge", "--dataset", "mine", "--shots", "4",
                                   "--seed", "1") if "penalty" not in c["b"]]  # fmt: skip
    assert (line["a"], line["b"]) == tuple(files)
    numbers = ("accuracy_a", "accuracy_b", "difference", "interval", "p", "mid_p", "n_images")
    assert [[line[key] for key in numbers]] == [[c[key] for key in numbers] for c in by_name]
    assert main(["compare", *files]) == 0
    header, row, *notes = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["A", "B"]
    assert row.split()[:2] == [f"{100 * line[f'accuracy_{x}']:.2f}" for x in "ab"]
    assert notes == [f"A is {files[0]}", f"B is {files[1]}"]


def test_the_table_has_a_line_per_pair_and_says_who_is_who(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "zero-shot", "nearest-mean", "--shots", "4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in out[:6]] == [
        ["dataset", "shots", "seed"],
        ["mine", "4", "1"], ["mine", "4", "2"], ["other", "4", "1"], ["other", "4", "2"],
        ["all", "4", "all"],
    ]  # fmt: skip
    assert out[6] == "A is zero-shot: zero-shot, m, tuned by none"
    assert out[7] == "B is nearest-mean: few-shot, m, tuned by none"


def test_mean_per_class_accuracies_are_shown_where_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "zero-shot", "ridge", "--shots", "4", "--per-class"]) == 0
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.endswith("A per class  B per class")
    mine = [results(*what).per_class_accuracy for what in
            (("zero-shot", "mine", 0, 0), ("ridge", "mine", 4, 1))]  # fmt: skip
    assert row.split()[-2:] == [f"{100 * value:.2f}" for value in mine]


def test_a_folder_of_results_may_have_moved(
    compared: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    before = compared("zero-shot", "nearest-mean")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert compared("zero-shot", "nearest-mean", "--results", "moved") == before


BAD = [
    (["ridge"], "Missing argument"),
    (["ridge", "none.npz"], "give two files of predictions or two methods"),
    (["none.npz", "none.npz"], "cannot read predictions from none.npz"),
    (["ridge", "rigde"], "unknown method in runs/results.jsonl 'rigde'; did you mean 'ridge'"),
    (["ridge", "zero-shot", "--results", "none"], "cannot read results from none"),
    (["ridge", "gda", "--results", "empty.jsonl"], "no results in empty.jsonl; `fewshot fit` and"),
    (["ridge", "gda"], "no runs of ridge and gda in runs/results.jsonl that agree"),
    (["ridge", "zero-shot", "--dataset", "sun"], "no runs of ridge and zero-shot"),
    (["ridge", "zero-shot", "--shots", "four"], "--shots must be integers"),
    (["ridge", "zero-shot", "--seed", "one"], "--seed must be integers"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_what_cannot_be_compared_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.jsonl").touch()
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("fewshot: ")
    assert message in line
    assert captured.out == ""


def test_predictions_of_different_test_images_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [results("ridge", dataset, 4, 1).predictions or "" for dataset in ("mine", "other")]
    assert main(["compare", *files]) == 2
    assert "different test images, 90 and 90 of them" in capsys.readouterr().err


def test_what_was_not_tuned_is_not_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "nearest-mean", "ridge", "--shots", "1"]) == 0
    assert "B is ridge: few-shot, m, tuned by none" in capsys.readouterr().out.splitlines()
    assert main(["compare", "nearest-mean", "ridge"]) == 0
    assert "B is ridge: few-shot, m, tuned by cv, not at one shot" in capsys.readouterr().out


def test_predictions_that_cannot_be_read_are_left_out_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["compare", "nearest-mean", "ridge", "--dataset", "mine", "--shots", "4", "--json"]
    assert main(asked) == 0
    before = [line for line in capsys.readouterr().out.splitlines() if '"seed": null' not in line]
    damaged = Path(results("ridge", "mine", 4, 1).predictions or "")
    damaged.write_bytes(b"no archive")
    assert main(asked) == 0
    captured = capsys.readouterr()
    assert [line for line in before if line in captured.out] == before[1:]
    assert captured.err.startswith(f"left out: {damaged} holds no predictions")
    for file in Path(SAVED).glob("ridge-*.npz"):
        file.unlink()
    assert main(["compare", "nearest-mean", "ridge"]) == 2
    assert "cannot read predictions from" in capsys.readouterr().err
