import csv
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from cache.errors import UserError
from cli import main
from fewshot.report.build import main_tables, make, read
from fewshot.results.log import append
from tests.toy_results import FEW, result, zero_shot


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for one in [*FEW, zero_shot()]:
        append(tmp_path / "runs" / "a" / "results.jsonl", one)
    return tmp_path / "runs"


def test_files_and_folders_are_read_and_bad_lines_told(runs: Path) -> None:
    again = runs / "more.jsonl"
    append(again, result(seed=9))
    with again.open("a") as file:
        file.write("{]\n")
    found = read([runs, again])
    assert len(found.results) == len(FEW) + 2
    assert "line 2 skipped" in found.notes[0]
    empty = runs / "empty.jsonl"
    empty.touch()
    with pytest.raises(UserError, match="no results in these files"):
        read([empty])
    empty.write_text("{]\n")
    with pytest.raises(
        UserError, match=r"no results in these files: .*empty.jsonl, line 1 skipped"
    ):
        read([empty])


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("text", "# few-shot, tiny: accuracy"),
        ("md", "| dataset | method | tuned by | 2 shots | 4 shots | seeds |"),
        ("latex", r"\toprule"),
        ("csv", "dataset,method,tuned by,2 shots,2 shots ±,4 shots,4 shots ±,seeds"),
    ],
)
def test_the_command_prints_the_main_tables(
    form: str, line: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs), "--format", form]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_the_command_writes_the_page_and_every_table_and_drawing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    stems = {"few-shot-tiny-accuracy", "few-shot-tiny-average", "few-shot-tiny-cost"}
    for suffix in (".csv", ".md", ".tex"):
        assert stems <= {path.stem for path in (out / "tables").glob(f"*{suffix}")}
    accuracies = (out / "tables" / "few-shot-tiny-accuracy.csv").read_text(encoding="utf-8")
    head, *rows = csv.reader(accuracies.splitlines())
    assert head[3:5] == ["2 shots", "2 shots ±"]
    assert float(rows[0][3]) == pytest.approx(32.2)
    for path in (out / "figures").glob("*.png"):
        with Image.open(path) as image:
            image.verify()
        ET.parse(path.with_suffix(".svg"))
    assert (out / "figures" / "few-shot-tiny-curves-average-of-2-datasets.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "cannot read results"),
        (
            ["RUNS", "--format", "xls"],
            "Invalid value for '--format': 'xls' is not one of 'text', 'md', 'latex', 'csv'",
        ),
        (["RUNS", "--tsne", "ridge"], "none of the results is of 'ridge'; they are of gda"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    arguments: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(str(runs) if a == "RUNS" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results\.jsonl in"):
        read([tmp_path])


def test_the_form_is_checked_for_any_caller() -> None:
    with pytest.raises(UserError, match="--format must be one of"):
        main_tables(make(FEW), "word")
