"""Commands as they are typed, and what they print where they cannot work."""

from pathlib import Path

import pytest

from cache.location import find_stores
from cli import main


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a command that cannot work prints, checked to be one and to exit with 2."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert code == 2
    assert last.startswith("fewshot: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return last


def extracted(photos: Path, model: Path, *more: str) -> Path:
    code = main(["extract", "--dataset", str(photos), "--model", f"local-dir:{model}", *more])
    assert code == 0
    return find_stores(Path("features"))[0]
