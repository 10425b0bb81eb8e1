import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.files.atomic import remove_leftovers, replacing


def test_the_file_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("reason", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_what_was_there(
    tmp_path: Path, reason: type[BaseException]
) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise reason

    with pytest.raises(reason):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_run_left_is_removed_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    target = tmp_path / "file[1]"
    left, of_another = tmp_path / ".file[1].0123.tmp", tmp_path / ".other.0123.tmp"
    left.touch()
    of_another.touch()
    with replacing(target) as first:
        first.write_text("first")
        with replacing(target) as second:
            second.write_text("second")
        assert first.exists()
        assert not left.exists()
    assert target.read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0123.tmp", "file[1]"]


def test_a_killed_writers_file_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib, cache.files.atomic as a\n"
        "with a.replacing(pathlib.Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); print('begun', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "file"
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        remove_leftovers(target)
        (alive,) = tmp_path.iterdir()
        writer.kill()
    remove_leftovers(target)
    assert not alive.exists()


def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    names = iter(["foreseen", "other"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    (tmp_path / ".file.foreseen.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(tmp_path / "file"):
        pass
    assert victim.read_text() == "precious"


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
