import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from cache.errors import UserError
from fewshot.parts import memory
from fewshot.parts.memory import available_memory, memory_refused, require_memory


@pytest.fixture
def four_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       99999999 kB\nMemAvailable:    4194304 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", path)


@pytest.mark.usefixtures("four_gib")
def test_what_fits_is_let_through() -> None:
    assert available_memory() == 4 * 2**30
    require_memory(4 * 2**30, "the work", "do less")


@pytest.mark.usefixtures("four_gib")
def test_what_does_not_fit_is_refused_with_need_supply_and_remedy() -> None:
    message = (
        "^the work needs 6.0 GiB of memory and 4.0 GiB are available; do less, "
        "or use a machine with more$"
    )
    with pytest.raises(UserError, match=message):
        require_memory(6 * 2**30, "the work", "do less")


@pytest.mark.parametrize("text", [None, "", "MemAvailable:", "MemAvailable: much kB"])
def test_where_the_system_does_not_say_all_memory_there_is_counts(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 3, "SC_PAGE_SIZE": 2**30}.get)
    assert available_memory() == 3 * 2**30


def test_nothing_is_refused_where_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.delattr(os, "sysconf")
    assert available_memory() is None
    require_memory(2**60, "the work", "do less")


def test_a_limit_on_the_process_counts_as_well() -> None:
    code = (
        "import resource; limit = 5 * 2**30;"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit));"
        "from fewshot.parts.memory import available_memory; print(available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 5 * 2**30


@pytest.mark.parametrize("limited", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_a_limit_on_addresses_or_on_data_counts_as_well(
    limited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    none, mine = (resource.RLIM_INFINITY,) * 2, 2**40
    monkeypatch.setattr(memory, "MEMINFO", Path("none"))
    monkeypatch.setattr(os, "sysconf", lambda name: 2**40)  # more than any limit
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (mine, mine) if kind == limited else none
    )
    left = available_memory()
    assert left is not None
    assert mine - 2**38 < left < mine  # what this process has already is less
    mine = 1
    assert available_memory() == 0


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**53), lambda: np.empty(2**53, np.uint8)])
def test_an_error_for_lack_of_memory_is_explained(ask: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    said = memory_refused(caught.value)
    assert said is not None
    assert re.match(r"out of memory: \d+.\d GiB more could not be had, and \d+.\d GiB are", said)


def test_the_sizes_in_it_are_read() -> None:
    asked = {
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes.": 3.0,
        "Unable to allocate 1.50 TiB for an array with shape (3, 4)": 1536.0,
        "CUDA out of memory. Tried to allocate 512.00 MiB (GPU 0; 79.2 GiB total)": 0.5,
    }
    for text, gib in asked.items():
        said = memory_refused(MemoryError(text))
        assert said is not None
        assert f"{gib:.1f} GiB more could not be had" in said
    assert memory_refused(MemoryError()) is not None


def test_other_errors_are_not_for_lack_of_memory() -> None:
    assert memory_refused(RuntimeError("shape mismatch")) is None
    assert memory_refused(ValueError("Unable to allocate 3 seats")) is None


def test_the_command_line_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "tree", lambda app: lambda **_: torch.empty(2**53))
    assert cli.main(["datasets"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fewshot: out of memory: ")
    assert err.count("\n") == 1
