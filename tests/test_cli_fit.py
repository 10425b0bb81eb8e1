import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import main
from fewshot.adapters.adapter import load_adapter
from fewshot.results.log import read
from fewshot.results.prediction_files import read_predictions
from tests.forked import needs_fork, start

KEYS = {
    "method", "dataset", "model", "shots", "seed", "tune", "accuracy", "hyperparameters",
    "n_support", "fit_seconds", "predict_seconds", "fingerprint", "version",
}  # fmt: skip


def imported(
    dataset: str = "mine", *, val: bool = True, text: bool = True, n_classes: int = 3
) -> None:
    """A store of three easy classes, twenty train images each."""
    rng = np.random.default_rng(0)
    directions = np.eye(n_classes, 8)
    arrays: dict[str, Any] = {"text_features": directions + 0.3} if text else {}
    for split, n in (("train", 60), ("val", 15), ("test", 90)):
        if split != "val" or val:
            labels = np.arange(n) % n_classes
            arrays[f"{split}_features"] = 2 * directions[labels] + rng.normal(size=(n, 8))
            arrays[f"{split}_labels"] = labels
    np.savez("f.npz", **arrays)
    assert main(["import", "f.npz", "--dataset", dataset, "--model", "ViT-B-32/openai"]) == 0


@pytest.fixture(autouse=True)
def elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder but for one store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_STORE", raising=False)
    imported()
    capsys.readouterr()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a `fit` that cannot work."""
    code = main(["fit", *arguments])
    captured = capsys.readouterr()
    *notes, last = captured.err.splitlines()
    assert code == 2
    assert last.startswith("fewshot: ")
    assert all(note.startswith("using ") for note in notes)
    assert captured.out == ""
    return last


def test_json_is_one_object_per_result_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "gda", "--shots", "2,4", "--seed", "1,2,3", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    results = [json.loads(line) for line in lines]
    assert [(r["shots"], r["seed"]) for r in results] == [(k, s) for k in (2, 4) for s in (1, 2, 3)]
    for result in results:
        assert set(result) >= KEYS
        assert 0 <= result["accuracy"] <= 1
        assert result["tune"] == "cv"
        assert result["n_support"] == 3 * result["shots"]
    assert [r.to_json() for r in read(Path("runs/results.jsonl"))] == lines


def test_a_table_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--shots", "4"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["dataset", "model", "method", "tuned", "by", "4", "shots"]
    assert row.startswith("mine     ViT-B-32/openai  gda")


def test_without_a_dataset_the_newest_store_is_used_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "nearest-mean", "--shots", "1", "--json"]) == 0
    assert capsys.readouterr().err == "using features/mine/ViT-B-32-openai.h5\n"
    imported("other")
    capsys.readouterr()
    assert main(["fit", "nearest-mean", "--shots", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["dataset"] == "other"
    assert captured.err == "using features/other/ViT-B-32-openai.h5\n"
    assert main(["fit", "nearest-mean", "--shots", "1", "--dataset", "mine", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["dataset"] == "mine"
    assert captured.err == ""


def test_zero_shot_is_one_result_whatever_the_shots(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "zero-shot", "--shots", "1,2", "--seed", "1,2", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["shots"] == 0


def test_a_setting_is_fixed_and_not_tuned_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--set", "alpha=3.5", "--set", "shrinkage=oas", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)
    assert chosen["hyperparameters"]["alpha"] == 3.5
    assert chosen["hyperparameters"]["shrinkage"] == "oas"
    assert chosen["tune"] == "none"


@pytest.mark.parametrize("protocol", ["none", "cv", "val", "full-val"])
def test_the_tuning_protocol_is_recorded(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--shots", "4", "--tune", protocol, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tune"] == protocol
    assert result["n_validation"] == {"val": 12, "full-val": 15}.get(protocol, 0)


def test_base_to_new_reports_both_halves(capsys: pytest.CaptureFixture[str]) -> None:
    imported("four", n_classes=4)
    capsys.readouterr()
    assert main(["fit", "zero-shot", "--dataset", "four", "--base-to-new", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["setting"] == "base-to-new"
    base, new = (result["accuracies"][half] for half in ("base", "new"))
    assert result["accuracy"] == pytest.approx(2 * base * new / (base + new))


def test_what_was_learned_on_one_store_is_tested_on_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    imported("art")
    imported("paint")
    capsys.readouterr()
    ask = ["fit", "gda", "--dataset", "mine", "--shots", "2", "--test-on", "art,paint", "--json"]
    assert main(ask) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["dataset"], r["fitted_on"]) for r in results] == [
        ("art", "mine"),
        ("paint", "mine"),
    ]
    assert {r["setting"] for r in results} == {"domain-generalization"}


def test_classes_may_be_made_unequal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--shots", "16", "--imbalance", "long-tail:4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["setting"], result["imbalance"]) == ("imbalanced", "long-tail:4")
    assert result["n_support"] == 16 + 8 + 4


def test_predictions_are_saved_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--shots", "1,2", "--save-predictions", "said", "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(Path("said").iterdir()) == sorted(Path(r["predictions"]) for r in results)
    for result in results:
        said = read_predictions(Path(result["predictions"]))
        assert (said.predicted == said.labels).mean() == pytest.approx(result["accuracy"])


def test_a_sample_goes_out_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--shots", "2", "--export-sample", "s.json", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(json.loads(Path("s.json").read_text())["train"]) == 6
    assert main(["fit", "gda", "--sample", "s.json", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["shots"], again["seed"]) == (2, 1)
    assert again["accuracy"] == first["accuracy"]


@needs_fork
def test_concurrent_runs_append_whole_lines(tmp_path: Path) -> None:
    command = ["fit", "gda", "--shots", "1", "--seed", "1,2,3,4,5", "--results", "r.jsonl"]
    running = [start(lambda: main(command), err=tmp_path / f"{i}.txt") for i in range(2)]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    assert len(read(tmp_path / "r.jsonl")) == 10


BAD: list[tuple[list[str], str]] = [
    (["coop"], "coop is trained through the model; run: fewshot train coop"),
    (["gdaa"], "unknown method 'gdaa'; did you mean 'gda'"),
    (["gda", "--dataset", "mien"], "there are mine/ViT-B-32-openai; make it with: fewshot extract"),
    (["gda", "--model", "tiny"], "no such store"),
    (["gda", "--store", "nowhere"], "no such store under nowhere"),
    (["gda", "--shots", "21"], "21 train images of every class are needed"),
    (["gda", "--shots", "0"], "shots must be 1 or more"),
    (["gda", "--shots", "four"], "--shots must be integers such as 1,2,4; got 'four'"),
    (["gda", "--seed", ""], "--seed must be integers"),
    (["gda", "--tune", "test"], "Invalid value for '--tune': 'test' is not one of"),
    (["gda", "--tune", "cv", "--shots", "1"], "tuning by cv needs two images of every class"),
    (["gda", "--set", "alpha"], "--set must be NAME=VALUE; got 'alpha'"),
    (["gda", "--set", "alpha=1", "--set", "alpha=2"], "--set alpha is given twice"),
    (["gda", "--set", "alpha=inf"], "alpha must be a number; got 'inf'"),
    (["gda", "--temperature", "3"], "--temperature is of the saved adapter; give --save"),
    (["gda", "--results", "."], "cannot write .: . is a folder; give --results another place"),
    (["gda", "--set", "alhpa=1"], "unknown setting of gda 'alhpa'; did you mean 'alpha'"),
    (["gda", "--set", "alpha=high"], "alpha must be a number; got 'high'"),
    (["gda", "--set", "alpha=-1"], "alpha must be 0 or more"),
    (["gda", "--prompts", "mine"], "unknown prompt set 'mine'"),
    (["gda", "--sample", "none.json"], "cannot read the sample none.json"),
    (["gda", "--sample", "f", "--export-sample", "f"], "exclude each other"),
    (["gda", "--threshold", "0.4"], "--threshold is for domain adaptation"),
    (["gda", "--score", "mcm"], "give --known as well"),
    (["gda", "--source", "mine", "--official"], "--source excludes --sample and --official"),
    (["gda", "--known", "2", "--base-to-new"], "--base-to-new and --known exclude one another"),
    (["gda", "--base-to-new", "--imbalance", "natural"], "exclude one another"),
    (["gda", "--test-on", "mine", "--sample", "s.json"], "exclude one another"),
    (["gda", "--imbalance", "steep"], "imbalance must be long-tail:R or step:R"),
    (["ridge", "--base-to-new"], "ridge knows no classes but those it has images of"),
    (["gda", "--shots", "1,2", "--export-sample", "s.json"], "one --shots and one --seed"),
    (["gda", "--results", "f.npz/r.jsonl"], "f.npz"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_fit_refuses_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *arguments)
    assert not Path("runs/results.jsonl").exists()


@pytest.mark.parametrize("protocol", ["val", "full-val"])
def test_without_val_its_protocols_are_refused(
    protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    imported("no-val", val=False)
    capsys.readouterr()
    line = refusal(capsys, "gda", "--dataset", "no-val", "--tune", protocol)
    assert "has no val split" in line
    assert main(["fit", "gda", "--dataset", "no-val"]) == 0


def test_without_text_what_needs_it_is_refused_and_the_rest_works(
    capsys: pytest.CaptureFixture[str],
) -> None:
    imported("no-text", text=False)
    capsys.readouterr()
    assert "needs text features" in refusal(capsys, "zero-shot", "--dataset", "no-text")
    for method in ("gda", "ridge", "nearest-mean"):
        assert main(["fit", method, "--dataset", "no-text"]) == 0


def test_a_class_without_a_train_image_is_refused_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"text_features": rng.normal(size=(3, 8))}
    for split, classes in (("train", 2), ("test", 3)):
        arrays |= {f"{split}_features": rng.normal(size=(12, 8))}
        arrays |= {f"{split}_labels": np.arange(12) % classes}
    np.savez("g.npz", **arrays)
    assert main(["import", "g.npz", "--dataset", "gap", "--model", "x"]) == 0
    capsys.readouterr()
    assert "'class 2' (class 2) has 0" in refusal(capsys, "gda", "--dataset", "gap")


def test_a_truncated_store_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    store = Path("features/mine/ViT-B-32-openai.h5")
    store.write_bytes(store.read_bytes()[:-100])
    assert "damaged or cut short" in refusal(capsys, "gda")


def test_what_was_fitted_is_kept_where_it_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "gda", "--shots", "4", "--save", "mine.safetensors"]) == 0
    captured = capsys.readouterr()
    adapter = load_adapter("mine.safetensors")
    [result] = read(Path("runs/results.jsonl"))
    assert result.setting == "few-shot"
    assert adapter.training["test accuracy"] == result.accuracy
    assert adapter.settings == result.hyperparameters
    assert captured.err.splitlines()[-1] == f"mine.safetensors: {adapter.summary()}"
    assert "3 classes, 4 shots; " in adapter.summary()
    assert captured.out.splitlines()[0].startswith("dataset  model")


def test_all_shots_are_the_whole_train_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gda", "--shots", "all", "--save", "all.safetensors"]) == 0
    assert load_adapter("all.safetensors").training["images per class"] == [20, 20, 20]
    assert main(["fit", "gda", "--shots", "all", "--json"]) == 0
    saved, plain = read(Path("runs/results.jsonl"))
    assert (plain.setting, plain.imbalance, plain.n_support) == ("imbalanced", "natural", 60)
    assert saved.accuracy == plain.accuracy
    capsys.readouterr()


@pytest.mark.parametrize(
    "more", [["--seed", "1,2"], ["--shots", "1,2"], ["--base-to-new"], ["--test-on", "mine"]]
)
def test_one_adapter_is_kept_and_no_more(
    capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    line = refusal(capsys, "gda", "--shots", "4", "--save", "a.safetensors", *more)
    assert "--save keeps one adapter of all classes" in line
    assert not Path("a.safetensors").exists()


def test_a_wrong_name_for_an_adapter_shows_before_anything_is_fitted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "ends in .safetensors; got a.pt" in refusal(capsys, "gda", "--save", "a.pt")
    assert not Path("runs").exists()


def test_without_a_test_split_a_classifier_can_be_kept_and_nothing_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez("t.npz", train_features=np.eye(6, 8), train_labels=np.arange(6) % 2)
    assert main(["import", "t.npz", "--dataset", "alone", "--model", "m"]) == 0
    capsys.readouterr()
    line = refusal(capsys, "nearest-mean", "--dataset", "alone", "--shots", "all")
    assert "has no test split, so there is nothing to report; keep a classifier" in line
    assert (
        main(
            [
                "fit",
                "nearest-mean",
                "--dataset",
                "alone",
                "--shots",
                "all",
                "--save",
                "a.safetensors",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == ""
    assert not Path("runs").exists()


def test_without_a_method_fit_runs_stack(capsys: pytest.CaptureFixture[str]) -> None:
    imported("any")
    capsys.readouterr()
    assert main(["fit", "--dataset", "any", "--shots", "2"]) == 0
    assert "stack" in capsys.readouterr().out
