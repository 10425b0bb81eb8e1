import os
from pathlib import Path

import pytest

from cache.errors import UserError
from fewshot.parts import memory
from fewshot.parts.memory import available_memory, require_memory


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
