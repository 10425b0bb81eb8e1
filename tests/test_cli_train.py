import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cache.datasets.resolving import find
from cache.errors import UserError
from cache.models.loading import load
from cli import main
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.opened_adapter import open_adapter
from fewshot.endtoend import processor
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.methods import METHODS
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.results.log import read

DIGITS = ["--dataset", "drawn", "--model", "tiny", "--shots", "1"]
SHORT = [*DIGITS, "--set", "epochs=2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, digit_photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with digits as photographs: 100 train, 40 val and 60 test images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digit_photos, "drawn")
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
    assert (result.method, result.dataset, result.model) == ("coop", "drawn", "tiny")
    assert (result.shots, result.seed, result.tune, result.setting) == (1, 3, "none", "few-shot")
    assert result.hyperparameters["seed"] == 3
    assert list(result.fixed) == ["epochs"]
    assert result.measures == {"trained_parameters": 16 * 64}
    assert result.n_test == 60
    assert "coop: steps 2/2" in captured.err
    assert "loss" in captured.err
    assert "coop: test images 60/60" in captured.err


def test_a_store_serves_where_there_is_one_unless_live_images_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["extract", "--dataset", "drawn", "--model", "tiny"]) == 0
    assert main(["train", "coop", *SHORT]) == 0
    assert "using features/drawn/tiny.h5" in capsys.readouterr().err
    assert main(["train", "coop", *SHORT, "--live"]) == 0
    assert "using" not in capsys.readouterr().err
    assert main(["train", "coop", *SHORT, "--precision", "bf16"]) == 0
    assert "steps 2/2" in capsys.readouterr().err
    for option in (["--live"], []):
        assert main(["train", "coop", *SHORT, *option]) == 0
        assert "this run is finished" in capsys.readouterr().err
    assert main(["train", "bitfit", *DIGITS, "--crop-scale", "1", "0.5"]) == 2
    assert "using" not in capsys.readouterr().err  # which learns from images


def test_a_finished_run_says_so_and_shows_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "coop", *SHORT]) == 0
    shown = capsys.readouterr().out
    log = Path("runs/results.jsonl")
    line = log.read_text()
    for more in ([], ["--resume"]):
        assert main(["train", "coop", *SHORT, *more]) == 0
        said = capsys.readouterr()
        assert said.out == shown
        assert "this run is finished, with this result; remove runs/checkpoints/coop-" in said.err
        assert "steps" not in said.err
        assert log.read_text() == line


def test_a_finished_run_is_kept_as_an_adapter_without_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "coop", *SHORT, "--save", "first.safetensors"]) == 0
    capsys.readouterr()
    assert main(["train", "coop", *SHORT, "--save", "again.safetensors"]) == 0
    assert "steps" not in capsys.readouterr().err
    first, again = (load_adapter(Path(f"{name}.safetensors")) for name in ("first", "again"))
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())


def test_a_result_that_was_lost_before_it_was_written_is_written() -> None:
    assert main(["train", "coop", *SHORT]) == 0
    log = Path("runs/results.jsonl")
    line = log.read_text()
    log.unlink()  # as if killed just before
    assert main(["train", "coop", *SHORT]) == 0
    assert log.read_text() == line


def test_without_its_checkpoint_a_finished_run_starts_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "coop", *SHORT]) == 0
    for checkpoint in Path("runs/checkpoints").glob("*.safetensors"):
        checkpoint.unlink()
    capsys.readouterr()
    assert main(["train", "coop", *SHORT]) == 0
    err = capsys.readouterr().err
    assert "coop: steps 2/2" in err
    assert "this run was done; its result is in runs/results.jsonl already" in err


def test_an_unfinished_run_is_not_overwritten_by_chance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "coop", *SHORT]) == 0
    [note] = Path("runs/checkpoints").glob("*.json")
    note.unlink()  # as if killed in the test after training
    capsys.readouterr()
    assert "continue it with --resume" in refusal(capsys, "coop", *SHORT)
    [first] = read(Path("runs/results.jsonl"))
    assert main(["train", "coop", *SHORT, "--resume", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accuracy"] == first.accuracy
    assert read(Path("runs/results.jsonl")) == [first]
    assert "continuing after step 2 of runs/checkpoints/coop-drawn-1-1" in captured.err
    assert "this run was done; its result is in runs/results.jsonl already" in captured.err
    assert "coop: steps" not in captured.err
    [checkpoint] = Path("runs/checkpoints").glob("*.safetensors")
    checkpoint.write_bytes(b"cut short")
    assert main(["train", "coop", *SHORT, "--resume"]) == 2
    err = capsys.readouterr().err
    assert "is no checkpoint (" in err
    assert "starting over" not in err


def test_resuming_what_was_never_started_says_that_it_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "coop", *SHORT, "--resume"]) == 0
    err = capsys.readouterr().err
    assert "no checkpoint runs/checkpoints/coop-drawn-1-1" in err
    assert "to continue from; starting over" in err
    assert "coop: steps 2/2" in err


def test_an_official_recipe_learns_from_fresh_crops_whatever_the_store_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CoOp, "plan", lambda *_: TrainingPlan(1, 32, lambda epoch, done: 1e-4))
    for views in ([], ["--views", "2", "--store", "views"]):
        assert main(["extract", "--dataset", "drawn", "--model", "tiny", *views]) == 0
    for more in ([], ["--official"], ["--official", "--store", "views"]):
        assert main(["train", "coop", *DIGITS, *more, "--out", f"runs{len(more)}"]) == 0
    plain, live, stored = (read(Path(f"runs{n}/results.jsonl"))[0] for n in (0, 1, 3))
    assert [result.run.n_views for result in (plain, live, stored)] == [1, 0, 2]
    assert plain.run != live.run
    assert live.hyperparameters["crop_scale"] == [0.08, 1.0]
    assert "crop_scale" not in plain.hyperparameters


def test_the_table_is_that_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "clip-lora", *DIGITS, "--set", "iterations_per_shot=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["dataset", "model", "method", "tuned", "by", "1", "shot"]
    assert lines[1].startswith("drawn    tiny   clip-lora (iterations_per_shot=2)  none")


def test_crops_are_the_papers_unless_others_are_asked_for() -> None:
    short = [*DIGITS, "--set", "iterations_per_shot=1"]
    assert main(["train", "clip-lora", *short]) == 0
    assert main(["train", "clip-lora", *short, "--crop-scale", "0.5", "1", "--no-flip"]) == 0
    usual, gentle = read(Path("runs/results.jsonl"))
    assert usual.hyperparameters["crop_scale"] == [0.08, 1.0]
    assert usual.hyperparameters["flip"] is True
    assert gentle.hyperparameters["crop_scale"] == [0.5, 1.0]
    assert gentle.hyperparameters["flip"] is False
    assert sorted(gentle.fixed) == ["crop_scale", "flip", "iterations_per_shot"]
    assert usual.run != gentle.run


def test_the_official_recipe_draws_clip_loras_own_few_shots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CLIPLoRA, "plan", lambda *_: TrainingPlan(1, 32, lambda epoch, done: 1e-4))
    for more in ([], ["--official"]):
        assert main(["train", "clip-lora", *DIGITS, *more]) == 0
    ours, theirs = read(Path("runs/results.jsonl"))
    assert "sample" not in ours.hyperparameters
    assert theirs.hyperparameters["sample"] == "val first"
    assert ours.run != theirs.run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gda", *DIGITS], "gda is fitted on stored features; run: fewshot fit gda"),
        (["ssf", *DIGITS, "--official"], "ssf has no published recipe for few shots of CLIP"),
        (
            ["coop", *SHORT, "--official"],
            "recipe sets everything itself; got epochs",
        ),
        (["coop", *DIGITS, "--crop-scale", "0.5", "0.1"], "crop_scale must be two shares"),
        (["koop", *DIGITS], "unknown end-to-end method 'koop'"),
        (["coop", *DIGITS, "--set", "depth=2"], "unknown setting of coop 'depth'"),
        (["coop", *DIGITS, "--set", "lr=fast"], "lr must be a number; got 'fast'"),
        (
            ["coop", *DIGITS, "--precision", "fp8"],
            "Invalid value for '--precision': 'fp8' is not one of 'auto'",
        ),
        (["coop", *DIGITS, "--device", "cuda"], "torch sees no CUDA device here"),
        (["coop", *DIGITS, "--shots", "999"], "999 train images of every class are needed"),
        (["coop", *DIGITS, "--shots", "0"], "--shots must be a whole number, 1 or more, or all"),
        (["coop", *DIGITS, "--shots", "all", "--base-to-new"], "of each class; give --shots K"),
        (["coop", "--dataset", "nowhere"], "unknown dataset 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert message in refusal(capsys, *arguments)


def test_too_little_memory_ends_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Learner, "loss", full)
    line = refusal(capsys, "coop", *SHORT)
    assert line.startswith("fewshot: the GPU is out of memory: 2.0 GiB more could not be had")
    for way in ("--save-memory", "--set text_chunk=64", "--set batch_size"):
        assert way in line


@pytest.mark.parametrize(
    ("cpuinfo", "lacks"),
    [
        ("processor: 0\nflags : fpu avx512f avx512_bf16\n", False),
        ("Features : fp asimd bf16\n", False),
        ("flags : fpu avx2 avx512f\n", True),
        ("", False),
        (None, False),
    ],
)
def test_a_processor_says_whether_it_has_instructions_for_bf16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str | None, lacks: bool
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor.lacks_bf16() == lacks


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_bf16_without_instructions_for_it_is_said_to_be_slow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    def stop(*_: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(processor, "lacks_bf16", lambda: True)
    monkeypatch.setattr(Learner, "loss", stop)
    assert main(["train", "coop", *SHORT, "--device", "cpu", "--precision", precision]) == 2
    said = "no instructions for bf16; --precision fp32 is faster" in capsys.readouterr().err
    assert said == (precision == "bf16")


def test_images_that_are_gone_are_told_before_training(
    capsys: pytest.CaptureFixture[str], draw_photos: Callable[..., Path]
) -> None:
    photos = draw_photos(12)
    for path in sorted(photos.rglob("*.jpg"))[:3]:
        path.write_bytes(b"")
    line = refusal(capsys, "clip-lora", "--dataset", str(photos), "--model", "tiny", "--shots", "4")
    assert "cannot be read" in line
    assert not Path("runs/checkpoints").exists()


@pytest.mark.parametrize(
    "method", ["coop", "sct --set channels=8 --set iterations_per_shot=2", "cocoop"]
)
def test_what_was_trained_is_kept_and_tells_test_images_as_it_did(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    short = DIGITS if "sct" in method else SHORT
    assert main(["train", *method.split(), *short, "--save", "mine.safetensors"]) == 0
    captured = capsys.readouterr()
    adapter = load_adapter("mine.safetensors")
    [result] = read(Path("runs/results.jsonl"))
    assert captured.err.splitlines()[-1] == f"mine.safetensors: {adapter.summary()}"
    assert adapter.training["test accuracy"] == result.accuracy
    assert (adapter.calibration.source, adapter.calibration.images) == ("val", 10)
    source = find("drawn")
    items = source.splits["test"][:40]
    predictor = open_adapter(adapter, device="cpu")
    pixels = torch.stack([predictor.preprocess.center(source.read(item.path)) for item in items])
    predicted = predictor.logits(predictor.features(pixels)).argmax(dim=1)
    trained = open_trained(adapter, pixels)
    torch.testing.assert_close(predicted, trained)


def test_what_was_trained_is_kept_though_a_class_has_too_few_images_to_validate(
    draw_photos: Callable[..., Path],
) -> None:
    photos = ["--dataset", str(draw_photos(6)), "--model", "tiny", "--shots", "2"]
    short = ["--set", "iterations_per_shot=1", "--save", "mine.safetensors"]
    assert main(["train", "vpt-deep", *photos, *short]) == 0
    calibration = load_adapter("mine.safetensors").calibration
    assert (calibration.source, calibration.images) == ("val", 3)


def open_trained(adapter: Adapter, pixels: torch.Tensor) -> torch.Tensor:
    """Predictions of the method attached anew, its parameters set one by one."""
    clip = Clip.of(load("tiny", device="cpu"))
    method = METHODS[adapter.method](**adapter.settings)
    learner = method.attach(clip, adapter.classnames, adapter.templates)
    for name, tensor in adapter.tensors.items():
        kind, _, rest = name.partition("/")
        here = learner.chosen[rest] if kind == "chosen" else learner.parameters[name]
        here.data.copy_(tensor)
    with torch.no_grad():
        encode = learner.images or clip.model.encode_image
        return learner.logits(encode(pixels)).argmax(dim=1)


def test_a_wrong_name_for_an_adapter_shows_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "got a.bin" in refusal(capsys, "coop", *SHORT, "--save", "a.bin")
    assert not Path("runs").exists()


def test_what_was_saved_of_another_shape_is_refused() -> None:
    clip = Clip.of(load("tiny", device="cpu"))
    learner = METHODS["coop"]().attach(clip, ("a", "b"), ())
    state = learner.state()
    with pytest.raises(UserError, match=r"context is \(3, 64\), expected \(16, 64\); train again"):
        learner.load_state({"context": torch.zeros(3, 64)})
    with pytest.raises(UserError, match="context is not there"):
        learner.load_state({})
    learner.load_state({name: torch.zeros_like(t) for name, t in state.items()})
    assert not learner.parameters["context"].any()


def test_a_loss_that_does_not_fall_is_said_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "coop", *DIGITS, "--set", "epochs=20", "--set", "lr=1e-9"]) == 0
    assert "the loss did not fall: its mean is" in capsys.readouterr().err
