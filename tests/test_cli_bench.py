import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest

from cli import main
from fewshot.bench import workers
from fewshot.results.log import read
from tests.forked import needs_fork, start, stop_once
from tests.small_stores import write_store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder but for two stores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSHOT_STORE", raising=False)
    write_store(Path("features"), "one")
    write_store(Path("features"), "two", seed=1)


SMALL = ["bench", "--methods", "zero-shot,nearest-mean,gda", "--shots", "1,2", "--seeds", "1,2"]


def test_a_table_of_means_and_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    captured = capsys.readouterr()
    header, *rows = captured.out.splitlines()
    assert re.split("  +", header) == [
        "method", "setting", "tuned by", "no shots", "1 shot", "2 shots",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows[:3]] == ["zero-shot", "nearest-mean", "gda"]
    assert rows[3].endswith("mean over 2 datasets (one, two).")
    assert "18 cells, 0 of them done before; into runs/bench" in captured.err
    assert captured.err.endswith("18/18 cells\n")
    assert len(read(Path("runs/bench/results.jsonl"))) == 18
    assert main(SMALL) == 0
    again = capsys.readouterr()
    assert again.out == captured.out
    assert "18 cells, 18 of them done before" in again.err


def test_a_failed_cell_is_reported_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    write_store(Path("features"), "two", text=())
    assert main([*SMALL, "--no-predictions"]) == 1
    captured = capsys.readouterr()
    assert re.search(r"zero-shot .* \(1 of 2 datasets\)", captured.out)
    assert "    fewshot fit zero-shot --model toy --dataset two" in captured.err
    assert not Path("runs/bench/predictions").exists()


def test_a_config_file_and_flags_over_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.toml").write_text('methods = "gda"\nshots = [1, 2]\nseeds = [3]\nset.alpha = [1, 2]\n')
    assert main(["bench", "--config", "b.toml", "--shots", "4", "--out", "o", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"gda alpha={alpha}.0 {name} toy 4 shots, seed 3"
        for name in ("one", "two")
        for alpha in "12"
    ]
    assert captured.err == "4 cells, 0 of them done before; into o\n"
    assert not Path("o").exists()


BAD: list[tuple[list[str], str]] = [
    (["--methods", "gdaa"], "unknown method 'gdaa'; did you mean 'gda'"),
    (["--datasets", "oen"], "unknown dataset 'oen'; did you mean 'one'"),
    (["--shots", "few"], "--shots must be integers such as 1,2,4; got 'few'"),
    (["--shots", "-1"], "shots must be a whole number, 0 or more"),
    (["--seeds", ""], "--seeds must be integers"),
    (["--methods", ","], "methods must name one or more"),
    (["--jobs", "0"], "jobs must be 1 or more; got 0"),
    (["--set", "alhpa=1"], "unknown setting 'alhpa'; did you mean 'alpha'"),
    (["--set", "alpha"], "--set must be [METHOD.]NAME=VALUE[,VALUE...]"),
    (["--config", "none.toml"], "cannot read none.toml"),
    (["--store", "nowhere"], "no such store under nowhere"),
    (["--protocol", "transfer"], "Invalid value for '--protocol': 'transfer' is not one of"),
    (["--out", "features/one/toy.h5"], "is a file; give --out another place"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("fewshot: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("runs").exists()


@needs_fork
@pytest.mark.parametrize(("how", "jobs"), [(signal.SIGKILL, "1"), (signal.SIGINT, "2")])
def test_a_stopped_run_goes_on_with_the_rest(
    how: signal.Signals, jobs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # One that is spawned, as in test_bench.py, takes seconds to load the libraries.
    monkeypatch.setattr(workers, "get_context", lambda _: multiprocessing.get_context("fork"))
    many = ",".join(map(str, range(1, 301)))
    asked = ["bench", "--methods", "gda", "--datasets", "one", "--shots", "2"]
    asked += ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "features")]
    log = tmp_path / "out" / "results.jsonl"

    def run() -> int:
        os.setsid()
        return main([*asked, "--seeds", many, "--jobs", jobs])

    process = start(run, err=tmp_path / "said.txt")
    # As Ctrl-C in a terminal, which all its processes hear.
    stop_once(process, lambda: log.exists() and log.stat().st_size > 0, how, group=True)
    errors = (tmp_path / "said.txt").read_text()
    if how is signal.SIGINT:
        assert process.exitcode == 130
        assert errors.splitlines()[-1].startswith(
            "fewshot: interrupted; the same command continues"
        )
        assert "Traceback" not in errors
    else:
        assert process.exitcode == -9
    done = log.read_text().splitlines()
    assert 0 < len(done) < 300
    seeds = ",".join(map(str, range(1, len(done) + 4)))
    assert main([*asked, "--seeds", seeds]) == 0
    assert "of them done before" in capsys.readouterr().err
    results = read(log)
    assert [r.to_json() for r in results][: len(done)] == done
    assert {r.seed for r in results} >= set(range(1, len(done) + 4))
    assert len({r.seed for r in results}) == len(results)
