import json
import platform
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import cache.models.loading
import fewshot
from cli import main
from fewshot.doctor import folders, installation, machine
from fewshot.doctor.checkup import Finding, checkup, report
from fewshot.endtoend.attention import unfuse
from tests.small_stores import write_store

ROOT = Path(fewshot.__file__).parents[1]
pytestmark = pytest.mark.usefixtures("offline")


def test_nothing_is_wrong_with_what_the_tests_run_in(tmp_path: Path) -> None:
    write_store(tmp_path / "stores", "toy")
    findings = checkup(tmp_path / "stores", tmp_path)
    assert [finding for finding in findings if finding.state == "problem"] == []
    assert {finding.name for finding in findings} >= {
        "fewshot-clip", "Python", "torch", "open-clip-torch", "torch pair", "encoder", "attention",
        "modules", "owners", "command", "processor", "memory", "CUDA", "file locks", "encoding",
        "hub cache", "hub", "store root", "data root", "runs", "leftovers", "stores",
    }  # fmt: skip
    assert all(bool(finding.fix) == (finding.state != "ok") for finding in findings)
    assert not any("\n" in finding.found + finding.fix for finding in findings)
    assert list(Path.cwd().iterdir()) == []


def test_a_check_that_fails_is_a_problem_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def owners() -> Iterator[Finding]:
        yield Finding("owners", "ok", "so far")
        raise RuntimeError("out of luck\nand more")

    for module in (installation, machine, folders):
        for name in vars(module).copy():
            if name in ALL_CHECKS:
                monkeypatch.setattr(module, name, lambda *_: [])
    monkeypatch.setattr(installation, "owners", owners)
    so_far, failed = checkup()
    assert so_far.found == "so far"
    assert (failed.name, failed.state) == ("owners", "problem")
    assert failed.found == "could not be looked at: RuntimeError: out of luck"


ALL_CHECKS = (
    "versions", "torch_pair", "encoder", "modules", "owners", "command", "processor", "memory",
    "cuda", "locks", "encoding", "hub", "stores_folder", "data_folder", "runs_folder", "leftovers",
    "stores", "synthesized",
)  # fmt: skip


def test_the_report_has_a_line_for_each_its_fix_and_the_count() -> None:
    findings = [
        Finding("torch", "ok", "2.6"),
        Finding("hub cache", "warning", "full", "make room"),
        Finding("cli", "problem", "hidden", "rename it"),
        Finding("cache", "problem", "hidden", "rename it"),
    ]
    assert report(findings) == (
        "ok       torch      2.6\n"
        "warning  hub cache  full\n"
        "                    fix: make room\n"
        "problem  cli        hidden\n"
        "                    fix: rename it\n"
        "problem  cache      hidden\n"
        "                    fix: rename it\n"
        "2 problems, 1 warning"
    )
    assert report([]) == "0 problems, 0 warnings"


def test_versions_are_judged_by_what_the_distribution_requires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    required = ["numpy>=999", "pillow>=1", "no-such-thing>=2,<3", "ray>=2.9; extra == 'ray'"]
    monkeypatch.setattr(metadata, "requires", lambda _: required)
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    ours, python, numpy, pillow, missing = installation.versions()
    assert ours.state == pillow.state == "ok"
    assert pillow.found == metadata.version("pillow")
    assert python == Finding(
        "Python",
        "problem",
        "3.9.1, where >=3.11 is required",
        "make a virtual environment with a Python >=3.11",
    )
    assert (numpy.name, numpy.state, numpy.fix) == ("numpy", "problem", "pip install 'numpy>=999'")
    assert numpy.found == f"{metadata.version('numpy')}, where >=999 is required"
    assert missing.found == "not installed; <3,>=2 is required"
    assert missing.fix == "pip install 'no-such-thing<3,>=2'"


def test_without_the_distribution_nothing_says_what_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(installation, "DISTRIBUTION", "no-such-thing")
    (finding,) = installation.versions()
    assert (finding.state, finding.fix) == ("problem", "pip install -e . in a checkout of it")


def test_a_torchvision_that_does_not_fit_torch_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = installation.torch_pair()
    assert (finding.name, finding.state) == ("torch pair", "problem")
    assert finding.found.endswith("RuntimeError: operator torchvision::nms does not exist")
    assert "--force-reinstall torch torchvision" in finding.fix


def test_another_attention_or_a_broken_model_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = cache.models.loading.load("tiny", device="cpu")
    monkeypatch.setattr(cache.models.loading, "load", lambda *_, **__: tiny)
    unfuse(tiny.model)
    encoder, attention = installation.encoder()
    assert (encoder.state, attention.state) == ("ok", "problem")
    assert attention.fix == "pip install 'open_clip_torch<4'"
    with torch.no_grad():
        tiny.model.visual.proj.fill_(torch.nan)
    assert next(iter(installation.encoder())).state == "problem"


def test_files_here_that_hide_our_modules_are_warned_of() -> None:
    Path("cache.py").touch()
    Path("fewshot").mkdir()
    Path("fewshot/__init__.py").touch()
    Path("cli").mkdir()  # hides nothing, as the next test has Python say
    first, second = installation.modules()
    assert (first.name, first.state) == ("modules", "warning")
    assert first.found.startswith(f"{Path.cwd() / 'cache.py'} hides the installed cache")
    assert second.found.startswith(f"{Path.cwd() / 'fewshot' / '__init__.py'} hides")


@pytest.mark.parametrize(
    ("file", "hidden"), [("cli.py", True), ("cli/__init__.py", True), ("cli/data.txt", False)]
)
def test_what_hides_a_module_and_what_does_not_is_as_python_has_it(
    file: str, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).touch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = "import importlib.util; print(importlib.util.find_spec('cli').origin)"
    command = [sys.executable, "-c", code]
    origin = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert (origin != str(ROOT / "cli.py")) == hidden
    assert ([f.state for f in installation.modules()] == ["warning"]) == hidden


def test_our_own_files_hide_nothing_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert [finding.state for finding in installation.modules()] == ["ok"]


def test_a_module_that_comes_from_elsewhere_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cli.py").touch()
    monkeypatch.delitem(sys.modules, "cli", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = installation.modules()
    assert finding.state == "problem"
    assert finding.found == f"Python takes cli from {tmp_path / 'cli.py'}, not from {ROOT}"


def test_another_distribution_with_a_module_of_our_name_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "other_tool-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-tool\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("cli\n")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = installation.owners()
    assert finding.state == "problem"
    assert finding.found == "other-tool has a module cli in this environment too"
    assert finding.fix.startswith("pip uninstall other-tool, or")


def test_the_command_is_looked_for_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def on_path(folder: Path) -> Finding:
        folder.mkdir(exist_ok=True)
        (folder / "fewshot").touch(0o755)
        monkeypatch.setenv("PATH", str(folder))
        (finding,) = installation.command()
        return finding

    monkeypatch.setenv("PATH", str(tmp_path))
    (missing,) = installation.command()
    scripts = Path(sysconfig.get_path("scripts"))
    assert (missing.state, missing.found) == ("warning", "no fewshot on PATH")
    assert missing.fix.endswith(str(scripts / "fewshot"))
    other = on_path(tmp_path / "other")
    assert other.state == "warning"
    assert other.found == f"on PATH is another environment's, {tmp_path / 'other' / 'fewshot'}"
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "other"))
    assert on_path(tmp_path / "other").state == "ok"


def put_model(hub: Path, repository: str, file: str, size: int) -> None:
    """A model as the hub's client keeps it."""
    folder = hub / f"models--{repository.replace('/', '--')}" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / file).write_bytes(bytes(size))
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0" * 40)


def test_the_clips_in_the_hub_cache_are_named(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    put_model(hub, "org/small-clip", "model.safetensors", 10)
    put_model(hub, "org/large-CLIP", "open_clip_pytorch_model.bin", 20)
    put_model(hub, "org/clip-tokenizer", "vocab.json", 30)
    put_model(hub, "org/bert", "model.safetensors", 40)
    _, finding = machine.hub()
    assert finding.found.endswith("the cache holds org/large-CLIP, org/small-clip")


def test_a_hub_out_of_reach_is_warned_of_with_what_still_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, finding = machine.hub()
    assert folder.name == "hub cache"
    assert finding.state == "warning"
    assert finding.found == "huggingface.co cannot be found from here; the cache holds no CLIP"
    assert finding.fix.endswith("tiny, local-dir:PATH and what is in the cache work without it")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, switched_off = machine.hub()
    assert switched_off.found.startswith("switched off by HF_HUB_OFFLINE")


@pytest.mark.parametrize("proxy", [True, False])
def test_a_hub_that_has_an_address_or_a_proxy_is_in_reach(
    proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if proxy:
        monkeypatch.setattr(machine, "getproxies", lambda: {"https": "http://proxy"})
    else:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    _, finding = machine.hub()
    assert finding == Finding("hub", "ok", "huggingface.co; the cache holds no CLIP")


def test_the_command_prints_the_findings_and_fails_where_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    findings = [Finding("Python", "ok", "3.11.7", ""), Finding("hub", "warning", "gone", "connect")]
    monkeypatch.setattr("fewshot.doctor.checkup.checkup", lambda store, data: findings)
    assert main(["doctor", "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == report(findings) + "\n"
    findings.append(Finding("torch", "problem", "missing", "install it"))
    assert main(["doctor", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [asdict(finding) for finding in findings]
