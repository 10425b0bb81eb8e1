"""The commands that `auto` writes down."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli import main
from fewshot.adapters.adapter import load_adapter
from fewshot.automatic.commands import Command, quoted, script, settings
from fewshot.automatic.pipeline import auto
from fewshot.method import variants
from fewshot.methods import METHODS
from fewshot.settings import configure
from tests.auto_photos import draw_digits, quickly


def test_a_line_break_in_a_name_ends_no_comment() -> None:
    steps = [Command("First", quoted("a\nb")), Command("Then", "c"), Command("Last", "d\ne")]
    lines = script(steps, Path("/x")).splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        "set -e", "cd /x", "c",
    ]  # fmt: skip
    assert r"# 'a\nb'" in lines


@pytest.mark.parametrize("name", sorted(METHODS))
def test_settings_as_words_make_the_very_same_method(name: str) -> None:
    method = configure(name, logit_scale=37.5)
    for tuned in list(variants(method, method.grid))[::7]:
        words = settings(tuned, logit_scale=37.5)
        assert words[::2] == ["--set"] * (len(words) // 2)
        pairs = dict(word.split("=") for word in words[1::2])
        assert set(method.grid) <= set(pairs)  # or `fit` would tune them again
        assert configure(name, pairs, logit_scale=37.5) == tuned


def test_settings_name_what_is_not_usual() -> None:
    gda = replace(configure("gda"), logit_scale=50.0)
    assert "logit_scale=50.0" in settings(gda, logit_scale=100.0)
    assert "logit_scale=50.0" not in settings(gda, logit_scale=50.0)


def test_where_class_names_win_the_command_asks_for_no_shots(tmp_path: Path) -> None:
    found = quickly(draw_digits(tmp_path / "photos", {"zero": 2, "one": 2}), methods=["zero-shot"])
    assert found.diagnostics.curve is None
    assert "--shots" not in found.commands[2].line
    assert "learns nothing from labels" in found.summary()
    assert main(shlex.split(found.commands[2].line)[1:]) == 0


def test_a_folder_called_like_a_known_dataset_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_STORE", raising=False)
    draw_digits(tmp_path / "digits", {"zero": 2, "one": 2})
    found = auto("digits", model="tiny", methods=["gda"], device="cpu", seed=7)
    assert found.out == Path("runs/auto/digits")
    assert found.commands[0].line == (
        "fewshot auto ./digits --model tiny --device cpu --out runs/auto/digits --methods gda "
        "--seed 7"
    )
    assert found.commands[1].line == (
        "fewshot extract --dataset ./digits --all-train --model tiny --device cpu"
    )
    fit = found.commands[2].line
    assert fit.startswith("fewshot fit gda --dataset digits-all --model tiny --shots all --seed 7 ")
    before = load_adapter(found.adapter_path)
    for step in found.commands[1:3]:
        assert main(shlex.split(step.line)[1:]) == 0
    after = load_adapter(found.adapter_path)
    for name, tensor in before.tensors.items():
        assert torch.equal(after.tensors[name], tensor)
