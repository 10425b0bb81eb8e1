"""The command line as a reader of --help meets it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import cli
from cache.extract import IF_EXISTS
from cache.extraction import engines
from cache.images import preprocessing as images
from cache.importing.import_store import IF_EXISTS as IF_IMPORTED
from cache.models import encoder, loading
from fewshot.adapters import output, prediction_parts
from fewshot.adapters.export.exporting import TARGETS
from fewshot.commands.examples import EXAMPLES
from fewshot.commands.help_page import LONG
from fewshot.endtoend.search.searching import STRATEGIES
from fewshot.model_selection.protocols import PROTOCOLS as TUNING
from fewshot.protocol import SETTINGS
from fewshot.tables import FORMATS

ROOT = Path(__file__).parents[1]
GROUP: Any = cli.tree(cli.app)
COMMANDS = sorted(GROUP.commands)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([command, "--help"]) == 0
    return capsys.readouterr().out


def choices(command: str, name: str) -> tuple[str, ...]:
    [found] = [p for p in GROUP.commands[command].params if p.name == name]
    return get_args(found.type_descriptor.annotation)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_ends_in_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, _, examples = help_of(command, capsys).partition("\nExamples:\n")
    assert examples.splitlines() == [f"  {example}" for example in EXAMPLES[command]]
    assert len(EXAMPLES[command]) == 2
    assert "Examples" not in text


@pytest.mark.parametrize("example", [one for pair in EXAMPLES.values() for one in pair])
def test_each_example_is_a_command_that_can_be_parsed(example: str) -> None:
    program, command, *words = shlex.split(example)
    assert program == "fewshot"
    assert example in EXAMPLES[command]
    GROUP.commands[command].make_context(command, words)


@pytest.mark.parametrize("command", ["extract", "fit", "train", "bench", "compare", "auto"])
def test_seeds_are_given_by_one_option_in_all_commands(command: str) -> None:
    [seed] = [p for p in GROUP.commands[command].params if "--seed" in p.opts]
    assert seed.opts == ["--seed", "--seeds"]


def test_there_are_examples_for_commands_and_nothing_else() -> None:
    assert sorted(EXAMPLES) == COMMANDS == sorted(cli.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_a_long_help_are_in_groups_and_none_is_lost(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, capsys)
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    parameters = [*GROUP.commands[command].params, "--help"]
    assert len(set(titles)) == len(titles)
    assert (len(titles) > 3) == (len(parameters) > LONG)
    for option in parameters[:-1]:
        name = option.metavar if option.param_type_name == "argument" else option.opts[0]
        assert f"\n  {name}" in text


def test_no_summary_is_cut_off_in_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "..." not in out.partition("Commands:")[2]
    assert all(f"\n  {command} " in out for command in COMMANDS)


CHOICES = [
    ("extract", "device", loading.DEVICES),
    ("extract", "precision", ("auto", *encoder.PRECISIONS)),
    ("extract", "resize", tuple(images.RESIZE)),
    ("extract", "engine", engines.ENGINES),
    ("extract", "if_exists", IF_EXISTS),
    ("import", "if_exists", IF_IMPORTED),
    ("fit", "tune", TUNING),
    ("bench", "tune", TUNING),
    ("bench", "protocol", SETTINGS),
    ("search", "strategy", tuple(STRATEGIES)),
    ("predict", "form", tuple(dict.fromkeys(output.FORMATS + prediction_parts.FORMS))),
    ("report", "form", tuple(FORMATS)),
    ("export", "to", tuple(TARGETS)),
]


@pytest.mark.parametrize(("command", "name", "known"), CHOICES)
def test_the_parser_knows_the_choices_that_the_library_has(
    command: str, name: str, known: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert choices(command, name) == known
    assert f"<{'|'.join(known)}>" in help_of(command, capsys)


def test_a_choice_that_does_not_exist_is_refused_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["fit", "gda", "--tune", "test"]) == 2
    assert capsys.readouterr().err == (
        "fewshot: Invalid value for '--tune': 'test' is not one of 'none', 'cv', 'val', "
        "'full-val'; see fewshot fit --help\n"
    )


def test_options_that_commands_share_are_declared_once() -> None:
    declared: dict[tuple[str, str, object], set[int]] = {}
    for command in cli.COMMANDS.values():
        for name, hint in get_type_hints(command, include_extras=True).items():
            if name != "return":
                [option] = hint.__metadata__
                declared.setdefault((name, option.help, hint.__origin__), set()).add(id(option))
    assert len(declared) > 40
    assert [shared for shared, ids in declared.items() if len(ids) > 1] == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{version('fewshot-clip')}\n"


def completed(line: str) -> list[str]:
    """What a shell that asks the program for completions of the line gets."""
    code = "import sys; sys.argv = ['fewshot']; import cli; raise SystemExit(cli.main())"
    asked = {
        "_FEWSHOT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | asked,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stdout.split()


def test_a_shell_completes_commands_options_and_choices() -> None:
    assert completed("fewshot ex") == ["extract", "export"]
    assert completed("fewshot fit --tu") == ["--tune"]
    assert completed("fewshot fit gda --tune c") == ["cv"]
