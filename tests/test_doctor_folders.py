import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fewshot.doctor import folders
from fewshot.doctor.checkup import Finding
from fewshot.parts.memory import GIB
from tests.small_stores import write_store

pytestmark = pytest.mark.usefixtures("offline")


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
