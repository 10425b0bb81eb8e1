import fcntl
import json
import locale
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import cache.models.loading
import fewshot
from cli import main
from fewshot.doctor import folders, installation, machine
from fewshot.doctor.checkup import Finding, checkup, report
from fewshot.endtoend.attention import unfuse
from fewshot.parts.memory import GIB
from tests.small_stores import write_store

ROOT = Path(fewshot.__file__).parents[1]


def cut_off(*_: object) -> None:
    raise socket.gaierror("no such name")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no hub cache, and an empty folder to work in."""
    monkeypatch.setattr(socket, "getaddrinfo", cut_off)
    monkeypatch.setattr(machine, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


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


@pytest.mark.parametrize(
    ("threads", "cores", "limits", "state", "fix"),
    [
        (1, 1, ("OMP_NUM_THREADS",), "ok", ""),
        (4, 8, (), "ok", ""),
        (1, 8, ("MKL_NUM_THREADS",), "warning", "unset MKL_NUM_THREADS"),
        (1, 8, machine.THREAD_LIMITS, "warning", "unset OMP_NUM_THREADS MKL_NUM_THREADS"),
        (1, 8, (), "warning", "export OMP_NUM_THREADS=8"),
        (16, 8, (), "warning", "export OMP_NUM_THREADS=8"),
    ],
)
def test_threads_should_be_more_than_one_and_no_more_than_cores(
    threads: int,
    cores: int,
    limits: tuple[str, ...],
    state: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in machine.THREAD_LIMITS:
        monkeypatch.delenv(name, raising=False)
    for name in limits:
        monkeypatch.setenv(name, str(threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    (finding,) = machine.processor(cores)
    assert (finding.state, finding.fix) == (state, fix)


@pytest.mark.parametrize(
    ("available", "state"), [(None, "ok"), (3 * GIB, "ok"), (GIB + GIB // 2, "warning")]
)
def test_little_memory_is_warned_of(
    available: int | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: available)
    (finding,) = machine.memory()
    assert finding.state == state
    assert state == "ok" or finding.found == "1.5 GiB available"


def cuda(monkeypatch: pytest.MonkeyPatch, *, device: bool, built: str | None, says: str) -> Finding:
    def is_available() -> bool:
        if says:
            warnings.warn(says, stacklevel=1)
        return False

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(shutil, "which", lambda _: "nvidia-smi" if device else None)
    (finding,) = machine.cuda()
    return finding


def test_no_cuda_device_is_no_fault_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is one")
    finding = cuda(monkeypatch, device=False, built="12.6", says="")
    assert (finding.state, finding.found[:9]) == ("ok", "no device")


def test_a_device_that_torch_cannot_use_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = cuda(monkeypatch, device=True, built=None, says="")
    assert finding.state == "warning"
    assert finding.found.endswith("was built without CUDA")
    finding = cuda(monkeypatch, device=True, built="12.6", says="The NVIDIA driver is too old")
    assert finding.found.endswith("torch cannot use it (The NVIDIA driver is too old)")
    assert finding.fix.startswith("install an NVIDIA driver for CUDA 12.6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (hidden,) = machine.cuda()
    assert (hidden.state, hidden.found) == ("ok", "hidden by an empty CUDA_VISIBLE_DEVICES")


def test_a_device_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((i + 3) * GIB, 8 * GIB))
    assert [finding.found for finding in machine.cuda()] == [
        "GPU 0, 3 of 8 GiB free",
        "GPU 1, 4 of 8 GiB free",
    ]


@pytest.mark.parametrize("setting", ["TRUE", "BEST_EFFORT", "FALSE"])
def test_hdf5_is_warned_of_where_it_refuses_a_store_that_is_locked(
    setting: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = write_store(tmp_path, "toy")
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", setting)
    code = f"from cache.store import FeatureStore, Path; FeatureStore.open(Path({str(store)!r}))"
    with store.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    (finding,) = machine.locks()
    assert (finding.state == "warning") == (result.returncode != 0)
    assert (setting in finding.found) == (finding.state == "warning")


def test_text_that_is_not_utf_8_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locale, "getencoding", lambda: "ANSI_X3.4-1968")
    (finding,) = machine.encoding()
    assert finding == Finding(
        "encoding",
        "warning",
        "the locale is in ANSI_X3.4-1968, not UTF-8",
        "export PYTHONUTF8=1",
    )


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


def test_a_folder_that_cannot_be_written_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (file,) = folders.stores_folder(tmp_path / "file")
    assert (file.state, file.found) == ("problem", f"{tmp_path / 'file'} cannot be written")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    (inside,) = folders.runs_folder(tmp_path / "not" / "there")
    assert (inside.name, inside.state) == ("runs", "problem")
    assert inside.fix == "work in another folder, or give --results"


def test_a_folder_is_told_with_its_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def usage(_: Path) -> Any:
        return type("Usage", (), {"free": free})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    free = 3 * GIB
    assert folders.writable("x", tmp_path, "move") == Finding(
        "x", "ok", f"{tmp_path}; 3.0 GiB free"
    )
    missing = folders.writable("x", tmp_path / "new", "move")
    assert missing.found == f"{tmp_path / 'new'}, to be made; 3.0 GiB free"
    free = GIB // 2
    tight = folders.writable("x", tmp_path, "move")
    assert (tight.state, tight.fix) == ("warning", "make room, or move")


def test_a_data_root_is_only_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (missing,) = folders.data_folder(tmp_path / "missing")
    assert (missing.state, "which is not there" in missing.found) == ("ok", True)
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    (there,) = folders.data_folder(tmp_path)
    assert there == Finding("data root", "ok", f"{tmp_path}; folders in it: 1")
    monkeypatch.setattr(os, "access", lambda *_: False)
    (closed,) = folders.data_folder(tmp_path)
    assert (closed.state, closed.found) == ("problem", f"{tmp_path} is no folder that can be read")


@pytest.mark.parametrize(
    ("kind", "locks", "states"),
    [
        ("ext4", False, ["ok"]),
        ("nfs4", True, ["ok", "ok"]),
        ("fuse.sshfs", False, ["ok", "problem"]),
    ],
)
def test_on_a_network_disk_locks_are_tried(
    kind: str, locks: bool, states: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class NoLock:
        def __init__(self, *_: object, **__: object) -> None:
            raise NotImplementedError("FileSystem does not appear to support flock")

    mounts = tmp_path / "mounts"
    disk = tmp_path / "net disk"
    disk.mkdir()
    escaped = str(disk).replace(" ", "\\040")
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nhost:/b {escaped} {kind} rw 0 0\n")
    monkeypatch.setattr(folders, "MOUNTS", mounts)
    if not locks:
        monkeypatch.setattr(folders, "FileLock", NoLock)
    findings = list(folders.stores_folder(disk))
    assert [finding.state for finding in findings] == states
    assert kind == "ext4" or f"({kind})" in findings[1].found
    assert list(disk.iterdir()) == []
    assert len(list(folders.stores_folder(tmp_path))) == 1


def test_what_killed_runs_left_is_told_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    write_store(tmp_path, "toy")
    half, parts = tmp_path / "toy" / ".tiny.h5.12.tmp", tmp_path / "toy" / ".it's.parts"
    (parts / "0123").mkdir(parents=True)
    piece = parts / "0123" / "train-0.safetensors"
    for file, mib in ((half, 1), (piece, 2)):
        file.write_bytes(bytes(mib * 2**20))
    (tmp_path / "toy" / ".tiny.lock").touch()
    assert [finding.state for finding in folders.leftovers(tmp_path)] == ["ok"]
    for path in (half, parts, parts / "0123"):
        os.utime(path, (0, 0))
    (only_half,) = folders.leftovers(tmp_path)
    assert only_half.found == f"{half}: a file that was never finished, 1.0 MiB"
    assert only_half.fix == f"rm -r {half}"
    os.utime(piece, (0, 0))
    first, second = folders.leftovers(tmp_path)
    assert first.found == f"{parts}: half an extraction, 2.0 MiB"
    assert first.fix.startswith("run the same extraction to its end, or rm -r '")
    assert second == only_half


def test_a_store_that_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    write_store(tmp_path, "toy")
    damaged = write_store(tmp_path, "other")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    problem, count = folders.stores(tmp_path)
    assert (problem.state, count.found) == ("problem", "1 can be opened")
    assert problem.found.startswith(f"{damaged} is damaged")
    assert problem.fix.startswith(f"rm {damaged} and extract")


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
