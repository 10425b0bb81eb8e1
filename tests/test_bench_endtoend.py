import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cli
from cache import progress
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from cli import main
from fewshot.bench import attempt
from fewshot.bench.config import configured
from fewshot.bench.status import Display, Pace
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.train import train
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.results.log import read

BENCH = ["bench", "--datasets", "digits", "--models", "tiny", "--shots", "1", "--seeds", "1,2"]
SHORT = ["--set", "coop.epochs=1", "--set", "clip-lora.iterations_per_shot=1"]


@pytest.fixture(autouse=True)
def digits(tmp_path: Path, digits_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a store of the digits."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSHOT_STORE", "FEWSHOT_DATA"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(digits_store / "digits", "features/digits")


def test_end_to_end_methods_stand_beside_cached_ones_sweeps_included(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*BENCH, "--methods", "gda,coop,clip-lora", *SHORT, "--set", "clip-lora.rank=1,2"]
    asked += ["--seeds", "1"]  # each run on images tests 539
    assert main(asked) == 0
    results = read(Path("runs/bench/results.jsonl"))
    assert sorted((r.method, r.hyperparameters.get("rank"), r.seed) for r in results) == [
        ("clip-lora", 1, 1),
        ("clip-lora", 2, 1),
        ("coop", None, 1),
        ("gda", None, 1),
    ]
    assert {r.setting for r in results} == {"few-shot"}
    assert all(r.predictions and Path(r.predictions).exists() for r in results)
    capsys.readouterr()
    assert main(asked) == 0
    assert "4 cells, 4 of them done before" in capsys.readouterr().err


def test_a_stopped_training_continues_within_its_cell_and_leaves_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*BENCH, "--seeds", "1", "--methods", "coop", "--set", "coop.epochs=3"]
    monkeypatch.setattr("fewshot.endtoend.experiment.train", partial(train, every=0))
    said: list[str] = []

    def stop(display: Display, how_far: str) -> None:
        said.append(how_far)
        if how_far == "step 3 of 3" and len(said) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "note", stop)
    assert main(asked) == cli.INTERRUPTED
    assert "the same command continues where it stopped" in capsys.readouterr().err
    assert len(list(Path("runs/bench/checkpoints").iterdir())) == 1
    assert main(asked) == 0
    assert said == ["step 1 of 3", "step 2 of 3", "step 3 of 3", "step 3 of 3"]
    assert list(Path("runs/bench/checkpoints").iterdir()) == []


def test_the_display_shows_how_far_a_training_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    display = Display(2, 0, Pace([], 1))
    display.current = "coop digits"
    display.note("step 3 of 9")
    assert capsys.readouterr().err == "0/2 cells, coop digits, step 3 of 9\n"


def test_all_methods_are_the_cached_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "--methods", "all", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "gda digits" in out
    assert "coop" not in out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--protocol", "base-to-new"], "bench trains coop on all classes; use fewshot train"),
        (["--imbalance", "step:2"], "with prompts of its own alone; leave imbalance out"),
    ],
)
def test_other_protocols_are_refused(
    capsys: pytest.CaptureFixture[str], more: list[str], why: str
) -> None:
    assert main([*BENCH, "--methods", "coop", *more]) == 2
    assert why in capsys.readouterr().err


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


def test_an_official_recipe_is_run_as_planned_whatever_the_store_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CoOp, "plan", lambda *_: TrainingPlan(1, 32, lambda epoch, done: 1e-4))
    asked = [*BENCH, "--seeds", "1", "--methods", "coop", "--official"]
    assert main([*asked, "--crop-scale", "0.5", "1"]) == 2
    assert main(asked) == 0
    [result] = read(Path("runs/bench/results.jsonl"))
    assert result.run.n_views == 0
    assert result.hyperparameters["crop_scale"] == [0.08, 1.0]


TRAINED = ["--methods", "vpt-deep", "--seeds", "1", "--set", "iterations_per_shot=2"]
CROPS = ["--crop-scale", "0.5", "1", "--no-flip"]


def test_options_of_train_reach_the_runs_and_their_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precisions: list[str] = []

    def noted(model: str, *, device: str, precision: str) -> Encoder:
        precisions.append(precision)
        return load(model, device=device)  # in fp32, for bf16 is slow on many CPUs

    monkeypatch.setattr(attempt, "load", noted)
    asked = [*BENCH, *TRAINED, *CROPS, "--precision", "bf16", "--save-memory"]
    assert main(asked) == 0
    assert precisions == ["bf16"]
    [result] = read(Path("runs/bench/results.jsonl"))
    assert result.hyperparameters["crop_scale"] == [0.5, 1.0]
    assert result.hyperparameters["flip"] is False
    assert result.fixed == {"iterations_per_shot": 2, "crop_scale": [0.5, 1.0], "flip": False}
    capsys.readouterr()
    assert main([*asked, "--dry-run"]) == 0
    assert "1 cells, 1 of them done before" in capsys.readouterr().err.replace(
        "1 cell,", "1 cells,"
    )


def test_the_command_that_repeats_a_failed_run_has_the_options_of_train(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*BENCH, *TRAINED, *CROPS, "--set", "lr=1e30", "--data-root", "my data"]
    asked += ["--device", "cpu", "--precision", "fp32", "--save-memory", "--max-pixels", "9"]
    Path("my data").mkdir()
    assert main(asked) == 1
    [command] = [line for line in capsys.readouterr().err.splitlines() if "fewshot train" in line]
    assert command.endswith(
        "--out runs/bench --data-root 'my data' --device cpu --precision fp32 "
        "--crop-scale 0.5 1.0 --no-flip --save-memory --max-pixels 9"
    )
    group: Any = cli.tree(cli.app)
    _, name, *words = shlex.split(command)
    parsed = group.commands[name].make_context(name, words).params
    assert parsed["crop_scale"] == (0.5, 1.0)
    assert parsed["settings"] == ["iterations_per_shot=2", "lr=1e+30"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "gda", "--official"], "--official is for methods that are trained through"),
        (["--methods", "ssf", "--official"], "ssf has no published recipe for few shots of CLIP"),
        (["--methods", "coop", *SHORT[:2], "--official"], "sets everything itself; got epochs"),
        (["--methods", "coop", "--crop-scale", "0.9", "0.5"], "0 < minimum <= maximum <= 1"),
    ],
)
def test_options_of_train_that_cannot_be_are_one_line(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BENCH, *more]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_options_of_train_stand_in_the_file_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.toml").write_text(
        '[train]\nprecision = "bf16"\ncrop_scale = [0.5, 1]\nflip = false\nmax_pixels = 9\n'
    )
    train = configured({"train": {"precision": "fp32"}}, Path("b.toml")).train
    assert (train.precision, train.crop_scale, train.flip) == ("fp32", (0.5, 1.0), False)
    assert train.max_pixels == 9
    for line, expected in (
        ("crop_scale = [1]", "expected two numbers"),
        ('flip = "no"', "expected true or false"),
        ("speed = 1", "unknown key"),
    ):
        Path("b.toml").write_text(f"[train]\n{line}\n")
        with pytest.raises(UserError, match=expected):
            configured({}, Path("b.toml"))


def test_a_folder_s_images_are_found_from_any_directory_and_bounded(
    draw_photos: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = draw_photos(4, ("blue", "red"))
    assert main(["extract", "--dataset", str(photos), "--model", "tiny", "--store", "s"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = ["bench", *TRAINED, "--shots", "1", "--store", "../s", "--datasets", "photos"]
    assert main([*asked, "--max-pixels", "9"]) == 1
    assert "the maximum is 9" in capsys.readouterr().err
    assert main([*asked, "--data-root", "."]) == 1  # what is asked for comes first
    assert main(asked) == 0
    (tmp_path / "moved").mkdir()
    photos.rename(tmp_path / "moved" / "photos")
    asked += ["--out", "again.jsonl"]
    assert main(asked) == 1
    assert "nor is it a folder or table here or in data (--data-root)" in capsys.readouterr().err
    assert main([*asked, "--data-root", "../moved"]) == 0
    extract = ["extract", "--dataset", "../moved/photos", "--model", "tiny", "--store", "../s"]
    assert main(extract) == 0  # encodes nothing, and notes where the folder is now
    assert main([*asked, "--out", "found.jsonl"]) == 0
