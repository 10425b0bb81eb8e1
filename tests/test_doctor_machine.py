import fcntl
import locale
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fewshot
from fewshot.doctor import machine
from fewshot.doctor.checkup import Finding
from fewshot.parts.memory import GIB
from tests.small_stores import write_store

ROOT = Path(fewshot.__file__).parents[1]
pytestmark = pytest.mark.usefixtures("offline")


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
