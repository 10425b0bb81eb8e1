"""Which libraries each command may load: a command waits for nothing that it does not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import COMMANDS, main

ENCODER = {"open_clip", "torchvision"}
HEAVY = {
    "numpy",
    "torch",
    "h5py",
    "scipy",
    "sklearn",
    "matplotlib",
    "PIL",
    "rich.console",
    "torch._dynamo",
    "sympy",
    *ENCODER,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, two methods' results and an adapter."""
    path = tmp_path_factory.mktemp("loading")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.delenv("FEWSHOT_STORE", raising=False)
        assert main(["extract", "--dataset", "digits", "--model", "tiny"]) == 0
        more = ["--shots", "2", "--save-predictions", "predictions"]
        assert main(["fit", "gda", *more, "--save", "a.safetensors"]) == 0
        assert main(["fit", "nearest-mean", *more]) == 0
    return path


def loaded(*commands: str, where: Path) -> set[str]:
    """The libraries among `HEAVY` that are loaded once the commands have run."""
    code = (
        "import sys, cli\n"
        "codes = [cli.main(line.split()) for line in sys.argv[1:]]\n"
        f"print(*codes, *({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "FEWSHOT_STORE"}
    root = str(Path(__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=where, env=env | {"PYTHONPATH": root}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = ran.stderr.splitlines()[-1].split()
    assert words[: len(commands)] == ["0"] * len(commands), ran.stderr
    return set(words[len(commands) :])


def test_help_and_version_load_no_library(tmp_path: Path) -> None:
    asked = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
    assert loaded(*asked, where=tmp_path) == set()


STORE = "features/digits/tiny.h5"


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("datasets", {"numpy", "PIL"}),
        (f"inspect {STORE}", {"numpy", "h5py"}),
        (f"verify {STORE}", {"numpy", "h5py"}),
        (
            "inspect a.safetensors",
            HEAVY - ENCODER - {"sklearn", "matplotlib", "PIL", "rich.console"},
        ),
        (
            "verify a.safetensors",
            HEAVY - ENCODER - {"sklearn", "matplotlib", "PIL", "rich.console"},
        ),
        ("methods", set()),
        ("methods gda", set()),
        ("report runs", {"numpy", "scipy"}),
        ("compare gda nearest-mean", {"numpy", "scipy"}),
        ("fit gda --shots 2 && fit text-probe --shots 2", {"numpy", "torch", "h5py"}),
    ],
)
def test_a_command_loads_what_it_uses(folder: Path, command: str, allowed: set[str]) -> None:
    assert loaded(*command.split(" && "), where=folder) <= allowed


def test_a_library_that_a_command_does_use_would_be_noticed(folder: Path) -> None:
    assert loaded(f"inspect {STORE}", where=folder) == {"numpy", "h5py"}
