"""Which libraries each command may load: a command waits for nothing that it does not use."""

import os
import shutil
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
def folder(tmp_path_factory: pytest.TempPathFactory, digits_store: Path) -> Path:
    """A folder with a store, two methods' results and an adapter."""
    path = tmp_path_factory.mktemp("loading")
    shutil.copytree(digits_store, path / "features")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.delenv("FEWSHOT_STORE", raising=False)
        more = ["--shots", "2", "--save-predictions", "predictions"]
        assert main(["fit", "gda", *more, "--save", "a.safetensors"]) == 0
        assert main(["fit", "nearest-mean", *more]) == 0
    return path


def loaded(*commands: str, where: Path) -> list[set[str]]:
    """The libraries among `HEAVY` that are loaded after each command of one process."""
    code = (
        "import sys, cli\n"
        "for line in sys.argv[1:]:\n"
        "    code = cli.main(line.split())\n"
        f"    print('ended', code, *({HEAVY} & set(sys.modules)), file=sys.stderr)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "FEWSHOT_STORE"}
    root = str(Path(__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=where, env=env | {"PYTHONPATH": root}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ends = [line.split()[1:] for line in ran.stderr.splitlines() if line.startswith("ended ")]
    assert [code for code, *_ in ends] == ["0"] * len(commands), ran.stderr
    return [set(libraries) for _, *libraries in ends]


def test_help_and_version_load_no_library(tmp_path: Path) -> None:
    asked = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
    assert loaded(*asked, where=tmp_path)[-1] == set()


STORE = "features/digits/tiny.h5"
STAGE_2 = {"numpy", "torch", "h5py"}
ADAPTERS = HEAVY - ENCODER - {"sklearn", "matplotlib", "PIL", "rich.console"}


@pytest.mark.parametrize(
    "commands",
    [
        [("methods", set()), ("methods gda", set()), ("datasets", {"numpy", "PIL"})],
        [("report runs", {"numpy", "scipy"}), ("compare gda nearest-mean", {"numpy", "scipy"})],
        [
            (f"inspect {STORE}", {"numpy", "h5py"}),
            (f"verify {STORE}", {"numpy", "h5py"}),
            ("fit gda --shots 2", STAGE_2),
            ("fit text-probe --shots 2", STAGE_2),
            ("inspect a.safetensors", ADAPTERS),
            ("verify a.safetensors", ADAPTERS),
        ],
    ],
    ids=["lists", "results", "stores and adapters"],
)
def test_a_command_loads_what_it_uses(folder: Path, commands: list[tuple[str, set[str]]]) -> None:
    """Each row runs in one process, a command that may load more after those that may load less."""
    typed, allowed = zip(*commands, strict=True)
    for command, libraries, may in zip(typed, loaded(*typed, where=folder), allowed, strict=True):
        assert libraries <= may, command


def test_a_library_that_a_command_does_use_would_be_noticed(folder: Path) -> None:
    assert loaded(f"inspect {STORE}", where=folder) == [{"numpy", "h5py"}]
