import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import main
from fewshot.endtoend.clip import Plan
from fewshot.endtoend.clip_lora import CLIPLoRA
from fewshot.results import read

DIGITS = ["--dataset", "digits", "--model", "tiny", "--shots", "1"]
SHORT = [*DIGITS, "--set", "epochs=2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSHOT_STORE", "FEWSHOT_DATA"):
        monkeypatch.delenv(name, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(["train", *arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def test_a_training_ends_in_a_result_line_like_that_of_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "coop", *SHORT, "--seed", "3", "--json"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    [result] = read(Path("runs/results.jsonl"))
    assert json.loads(result.to_json()) == printed
    assert (result.method, result.dataset, result.model) == ("coop", "digits", "tiny")
    assert (result.shots, result.seed, result.tune, result.setting) == (1, 3, "none", "few-shot")
    assert result.hyperparameters["seed"] == 3
    assert result.fixed == ["epochs"]
    assert result.measures == {"trained_parameters": 16 * 64}
    assert result.n_test == 539
    assert "coop: steps 2/2" in captured.err
    assert "loss" in captured.err
    assert "coop: test images 539/539" in captured.err


def test_a_store_serves_where_there_is_one_unless_live_images_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["extract", "--dataset", "digits", "--model", "tiny"]) == 0
    assert main(["train", "coop", *SHORT]) == 0
    assert "using features/digits/tiny.h5" in capsys.readouterr().err
    assert main(["train", "coop", *SHORT, "--live", "--out", "other"]) == 0
    assert "using" not in capsys.readouterr().err


def test_a_finished_run_is_neither_lost_nor_repeated_by_chance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "coop", *SHORT]) == 0
    capsys.readouterr()
    assert "--resume goes on from it" in refusal(capsys, "coop", *SHORT)
    assert main(["train", "coop", *SHORT, "--resume"]) == 0
    first, again = read(Path("runs/results.jsonl"))
    assert first.accuracy == again.accuracy
    assert "steps" not in capsys.readouterr().err


def test_the_table_is_that_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "clip-lora", *DIGITS, "--set", "iterations_per_shot=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["dataset", "model", "method", "tuned", "by", "1", "shot"]
    assert lines[1].startswith("digits   tiny   clip-lora (iterations_per_shot=2)  none")


def test_crops_are_the_papers_unless_others_are_asked_for() -> None:
    short = [*DIGITS, "--set", "iterations_per_shot=1"]
    assert main(["train", "clip-lora", *short]) == 0
    assert main(["train", "clip-lora", *short, "--crop-scale", "0.5", "1", "--no-flip"]) == 0
    usual, gentle = read(Path("runs/results.jsonl"))
    assert usual.hyperparameters["crop_scale"] == [0.08, 1.0]
    assert usual.hyperparameters["flip"] is True
    assert gentle.hyperparameters["crop_scale"] == [0.5, 1.0]
    assert gentle.hyperparameters["flip"] is False
    assert gentle.fixed == ["crop_scale", "flip", "iterations_per_shot"]
    assert usual.cell() != gentle.cell()


def test_the_official_recipe_draws_clip_loras_own_few_shots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CLIPLoRA, "plan", lambda *_: Plan(1, 32, lambda epoch, done: 1e-4))
    for more in ([], ["--official"]):
        assert main(["train", "clip-lora", *DIGITS, *more]) == 0
    ours, theirs = read(Path("runs/results.jsonl"))
    assert "sample" not in ours.hyperparameters
    assert theirs.hyperparameters["sample"] == "val first"
    assert ours.cell() != theirs.cell()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ssf", *DIGITS, "--official"], "ssf has no published recipe for few shots of CLIP"),
        (["coop", *SHORT, "--official"], "--official is the published recipe; leave out --set"),
        (["coop", *DIGITS, "--crop-scale", "0.5", "0.1"], "crop_scale must be two shares"),
        (["koop", *DIGITS], "unknown end-to-end method 'koop'"),
        (["coop", *DIGITS, "--set", "depth=2"], "unknown setting of coop 'depth'"),
        (["coop", *DIGITS, "--set", "lr=fast"], "lr must be a number; got 'fast'"),
        (["coop", *DIGITS, "--precision", "fp8"], "unknown precision 'fp8'"),
        (["coop", *DIGITS, "--device", "cuda"], "torch sees no CUDA device here"),
        (["coop", *DIGITS, "--shots", "999"], "999 train images of every class are needed"),
        (["coop", "--dataset", "nowhere"], "unknown dataset 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "cuda" in arguments:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    assert message in refusal(capsys, *arguments)


def test_images_that_are_gone_are_told_before_training(
    capsys: pytest.CaptureFixture[str], draw_photos: Callable[..., Path]
) -> None:
    photos = draw_photos(12)
    for path in sorted(photos.rglob("*.jpg"))[:3]:
        path.write_bytes(b"")
    line = refusal(capsys, "clip-lora", "--dataset", str(photos), "--model", "tiny", "--shots", "4")
    assert "cannot be read" in line
    assert not Path("runs/checkpoints").exists()
