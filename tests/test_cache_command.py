from pathlib import Path

import numpy as np
import pytest

from cache.extraction.bank import Bank
from cache.location import bank_path
from cli import main

KEYS = [bytes([i]) * 32 for i in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of stores with kept features, of which one store uses two."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "m.h5").touch()
    with Bank.opened(bank_path(tmp_path)) as bank:
        number = bank.encoder("m", {})
        bank.put(number, "image", KEYS, np.ones((4, 100_000), np.float32))
        bank.use(tmp_path / "d" / "m.h5", number, KEYS[2:])
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], root: Path, *options: str) -> list[str]:
    """The words of the model's row, if there is one."""
    assert main(["cache", "--store", str(root), *options]) == 0
    rows = capsys.readouterr().out.splitlines()
    return next((row.split() for row in rows if row.startswith("m ")), [])


def test_what_is_kept_is_shown_pruned_and_bounded(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, root) == ["m", "4", "0", "1.6"]
    before = bank_path(root).stat().st_size
    assert shown(capsys, root, "--prune") == ["m", "2", "0", "0.8"]
    assert bank_path(root).stat().st_size < 0.7 * before
    assert shown(capsys, root, "--max-size", "0.5MB") == ["m", "1", "0", "0.4"]
    (root / "d" / "m.h5").unlink()
    assert shown(capsys, root, "--prune") == []


@pytest.mark.parametrize("size", ["", "5", "MB", "-1GB", "infGB", "nanGB", "5XB"])
def test_a_size_that_is_none_is_one_line_and_removes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    assert main(["cache", "--store", str(root), "--prune", f"--max-size={size}"]) == 2
    assert capsys.readouterr().err.startswith("fewshot: --max-size must be a size such as 500MB")
    assert shown(capsys, root) == ["m", "4", "0", "1.6"]


def test_no_kept_features_and_damaged_ones_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "--store", str(tmp_path)]) == 2
    assert "no features are kept at" in capsys.readouterr().err
    bank_path(tmp_path).write_bytes(b"nothing of the kind" * 99)
    assert main(["cache", "--store", str(tmp_path)]) == 2
    assert "is damaged" in capsys.readouterr().err
