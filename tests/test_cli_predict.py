import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import main
from tests.forked import needs_fork, start


@pytest.fixture
def photos(
    draw_photos: Callable[..., Path],
    random_vit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Path:
    """Eighteen photos of three classes, and beside them an adapter that was fitted to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_STORE", raising=False)
    monkeypatch.setenv("FEWSHOT_MODEL", f"local-dir:{random_vit}")
    folder = draw_photos()
    assert main(["extract", "--dataset", "photos", "--all-train"]) == 0
    assert (
        main(["fit", "gda", "--dataset", "photos-all", "--shots", "all", "--save", "a.safetensors"])
        == 0
    )
    capsys.readouterr()
    return folder


def test_a_folder_is_classified_by_the_adapter_that_learned_it(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "a.safetensors", "photos", "--format", "csv", "--top", "2"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert len(rows) == 18
    right = [row["label"] == Path(row["path"]).parent.name for row in rows]
    assert sum(right) >= 15
    assert captured.err.splitlines()[-1] == "18 images classified"
    assert rows[0]["path"].startswith("photos/blue/")


def test_what_cannot_be_read_is_told_and_skipped(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty.jpg").touch()
    assert (
        main(["predict", "a.safetensors", "photos/empty.jpg", "photos/red", "--format", "jsonl"])
        == 0
    )
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert lines[0] == {"path": "photos/empty.jpg", "error": "the file is empty"}
    assert len(lines) == 7
    assert "cannot read photos/empty.jpg: the file is empty" in captured.err
    assert captured.err.splitlines()[-1] == "6 images classified, 1 unreadable and skipped"
    assert main(["predict", "a.safetensors", "photos/empty.jpg"]) == 2
    assert "the one image cannot be read" in capsys.readouterr().err


def test_a_mistake_is_one_line_before_any_model_is_loaded(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot.adapters.opened_adapter.load", None)
    for arguments, expected in (
        (["a.safetensors", "no.jpg"], "nothing matches 'no.jpg'"),
        (["b.safetensors", "photos"], "cannot read an adapter from b.safetensors"),
        (["a.safetensors", "photos", "--min-confidence", "2"], "must be a probability"),
        (["a.safetensors", "photos", "--top", "0"], "top must be at least 1"),
        (["a.safetensors", "photos", "--format", "xml"], "Invalid value for '--format'"),
    ):
        assert main(["predict", *arguments]) == 2
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 1
        assert expected in captured.err
        assert captured.out == ""


def test_another_model_is_refused_with_both_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "a.safetensors", "photos", "--model", "tiny"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "made with local-dir:" in line
    assert "and this is tiny (weights " in line


@needs_fork
def test_a_reader_that_has_seen_enough_is_no_error(photos: Path) -> None:
    command = ["predict", "a.safetensors", "photos", "--format", "csv", "--batch-size", "1"]
    reading, writing = os.pipe()

    def write_alone() -> int:
        os.close(reading)
        return main(command)

    running = start(write_alone, out=writing, err=Path("said.txt"))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.readline().startswith(b"path,label")
    running.join()
    assert running.exitcode == 0
    assert "Traceback" not in Path("said.txt").read_text()
