import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.files import atomic_folder
from cache.files.atomic_folder import remove_left_folders, replacing_folder

STEPS = ("open", "os.", "shutil.")  # audit events of what touches the disk, each before it does


def write(path: Path, content: str) -> None:
    with replacing_folder(path) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(content)


def read(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def whole(content: str) -> dict[str, str]:
    return {"a": content, "b": content}


def killed_at(step: int, action: Callable[[], None]) -> bool:
    """Run in a process that kills itself before the step; False if it ended before that."""
    process = os.fork()
    if process:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code in (0, -signal.SIGKILL)
        return code != 0
    left = step

    def count(event: str, arguments: object) -> None:
        nonlocal left
        left -= event.startswith(STEPS)
        if left < 0 and event != "os.kill":
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        action()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_step_the_old_or_the_new_is_there_and_the_next_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic_folder, "_exchange", lambda one, other: False)
    target, seen = tmp_path / "out", []
    for step in range(1000):
        if before:
            write(target, "old")
        killed = killed_at(step, lambda: write(target, "new"))
        if not killed:
            break
        seen.append(target.is_dir())
        if target.exists():
            assert read(target) in ([whole("old")] if before else []) + [whole("new")]
        write(target, "again")
        assert read(target) == whole("again")
        assert list(tmp_path.iterdir()) == [target]
        for name in ("a", "b"):
            (target / name).unlink()
        target.rmdir()
    assert len(seen) > 10
    assert read(target) == whole("new")
    if before:  # by two renames there is one moment between them
        assert seen.count(False) == (0 if exchange else 1)


def test_what_is_being_made_is_left_alone_and_what_was_left_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    strange = [tmp_path / name for name in (".out.0123.tmp", ".other.01234567.tmp", "out.tmp")]
    for folder in (*strange, tmp_path / ".out.01234567.tmp"):
        (folder / "inside").mkdir(parents=True)
    with replacing_folder(target) as folder:
        remove_left_folders(target)
        (folder / "a").write_text("whole")
    assert read(target) == {"a": "whole"}
    assert sorted(tmp_path.iterdir()) == sorted([target, *strange])


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / ".out.01234567.tmp").symlink_to(tmp_path / "victim")
    write(tmp_path / "out", "new")
    assert (tmp_path / "victim").is_dir()


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")

    def fail() -> None:
        with replacing_folder(target) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read(target) == whole("old")
    assert list(tmp_path.iterdir()) == [target]
