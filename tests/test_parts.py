from pathlib import Path

import pytest
import torch

from cache.parts import Parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    kept = Parts(tmp_path)
    kept.save("a", {"x": torch.arange(3.0)}, {"skipped": {"4": "torn"}})
    return kept


def test_what_was_saved_comes_back(parts: Parts) -> None:
    assert parts.done("a")
    torch.testing.assert_close(parts.load("a")["x"], torch.arange(3.0))
    assert parts.note("a") == {"skipped": {"4": "torn"}}


def test_a_piece_without_its_marker_is_not_done(parts: Parts) -> None:
    (parts.directory / "a.json").unlink()
    assert not parts.done("a")


def test_a_marker_without_its_piece_is_not_done(parts: Parts) -> None:
    (parts.directory / "a.safetensors").unlink()
    assert not parts.done("a")


def test_a_piece_that_its_marker_was_not_written_for_is_not_done(parts: Parts) -> None:
    marker = (parts.directory / "a.json").read_text()
    parts.save("a", {"x": torch.zeros(3)}, {})
    (parts.directory / "a.json").write_text(marker)
    assert not parts.done("a")


def test_a_torn_marker_is_not_done(parts: Parts) -> None:
    (parts.directory / "a.json").write_text("")
    assert not parts.done("a")
