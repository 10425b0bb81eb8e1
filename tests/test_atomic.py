from pathlib import Path

import pytest

from cache.atomic import replacing


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
