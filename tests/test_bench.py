import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from filelock import FileLock

from cache import progress
from cache.errors import UserError
from cli import main
from fewshot.bench.attempt import Attempt, Failure
from fewshot.bench.benchmark import BenchOutcome, pending, run
from fewshot.bench.combination import Cell
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.bench.status import Display, Pace
from fewshot.classifier import LinearClassifier
from fewshot.method import Method
from fewshot.methods import METHODS
from fewshot.protocol import Protocol
from fewshot.results.log import Result, read
from fewshot.results.prediction_files import read_predictions
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.small_stores import NAMES, write_store
from tests.toy_results import RESULT


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Eight cells on two datasets."""
    write_store(tmp_path / "features", "one")
    write_store(tmp_path / "features", "two", seed=1)
    return Bench(
        methods=("gda", "nearest-mean"), shots=(1, 2), seeds=(1,), store=tmp_path / "features",
        out=tmp_path / "out",
    )  # fmt: skip


def ran(bench: Bench) -> tuple[BenchOutcome, str]:
    """What came of it, and what was said."""
    said: list[str] = []
    return run(bench, plan(bench), said.append), "\n".join(said)


def accuracies(outcome: BenchOutcome) -> list[float]:
    return [run.accuracy for run in outcome.runs if isinstance(run, Result)]


def failed(outcome: BenchOutcome) -> list[str]:
    """The datasets without a result."""
    return [run.dataset for run in outcome.runs if not isinstance(run, Result)]


def again(bench: Bench, cell: Cell) -> str:
    return cell.run.command(bench.store, bench.out)


def log(bench: Bench) -> Path:
    return bench.out / "results.jsonl"


def test_every_cell_has_a_result_in_the_log(bench: Bench) -> None:
    outcome, said = ran(bench)
    assert said == f"8 cells, 0 of them done before; into {bench.out}"
    assert outcome.runs == read(log(bench))
    assert not outcome.failures
    assert not (bench.out / "failures.jsonl").exists()


def test_predictions_are_saved_unless_they_are_not_wanted(bench: Bench) -> None:
    ran(replace(bench, datasets=("one",)))
    for result in read(log(bench)):
        assert result.predictions is not None
        saved = read_predictions(Path(result.predictions))
        assert (saved.predicted == saved.labels).mean() == result.accuracy
    ran(replace(bench, datasets=("two",), predictions=False))
    assert {r.predictions is None for r in read(log(bench)) if r.dataset == "two"} == {True}


def test_what_is_done_is_skipped_and_the_rest_run(bench: Bench) -> None:
    first, _ = ran(bench)
    whole = log(bench).read_text()
    lines = whole.splitlines(keepends=True)
    log(bench).write_text("".join(lines[:3]) + lines[3][:40])  # as if killed at the fourth
    left = bench.out / "predictions" / f".{plan(bench).cells[-1].run.file_name}.1.tmp"
    left.touch()
    second, said = ran(bench)
    assert "8 cells, 3 of them done before" in said
    assert "line 4 skipped" in said
    assert not left.exists()
    assert accuracies(second) == accuracies(first)
    whole = log(bench).read_text()
    _, said = ran(bench)
    assert "8 cells, 8 of them done before" in said
    assert log(bench).read_text() == whole


def test_a_store_that_was_made_anew_is_run_anew(bench: Bench) -> None:
    ran(bench)
    write_store(bench.store, "two", seed=7)
    said: list[str] = []
    tasks = pending(bench, plan(bench), said.append)
    assert {cell.run.dataset for task in tasks for cell in task} == {"two"}
    assert said == [f"8 cells, 4 of them done before; into {bench.out}"]


def test_a_failing_cell_is_told_and_the_others_run(bench: Bench) -> None:
    write_store(bench.store, "two", text=())
    bench = replace(bench, methods=("zero-shot", "nearest-mean"))
    outcome, said = ran(bench)
    assert failed(outcome) == ["two"]
    [(error, [cell])] = outcome.failures.items()
    assert error.startswith("zero-shot needs text features")
    assert "1 cell failed, listed in" in said
    assert f"  zero-shot two toy: {error}\n    {again(bench, cell)}" in said
    [told] = map(json.loads, (bench.out / "failures.jsonl").read_text().splitlines())
    assert told == {"cell": asdict(cell.run), "error": error, "again": again(bench, cell)}
    write_store(bench.store, "two")
    outcome, said = ran(bench)
    assert not outcome.failures
    assert not (bench.out / "failures.jsonl").exists()


def test_an_error_of_many_cells_is_told_once(bench: Bench, capsys: Any) -> None:
    outcome, said = ran(replace(bench, shots=(1, 21)))
    assert sum(map(len, outcome.failures.values())) == 4
    assert said.count("21 train images") == 1
    assert capsys.readouterr().err.count("21 train images") == 1
    assert " and 3 more: 21 train images of every class are needed" in said
    assert len((bench.out / "failures.jsonl").read_text().splitlines()) == 4


@dataclass(frozen=True)
class Broken(Method):
    """A method with a bug."""

    name: ClassVar[str] = "broken"

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        raise ZeroDivisionError("a bug\nof two lines")


def test_a_bug_costs_its_cell_and_keeps_its_traceback(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "broken", Broken)
    bench = replace(bench, methods=("broken", "gda"), datasets=("one",), shots=(2,))
    outcome, _ = ran(bench)
    assert list(outcome.failures) == ["ZeroDivisionError: a bug of two lines"]
    assert [isinstance(run, Result) for run in outcome.runs] == [False, True]
    told = json.loads((bench.out / "failures.jsonl").read_text())
    assert 'raise ZeroDivisionError("a bug' in told["trace"]


def test_of_targets_that_share_a_fit_one_can_fail(bench: Bench) -> None:
    write_store(bench.store, "bare", text=(), names=(*NAMES, "elk"))
    write_store(bench.store, "whole", names=(*NAMES, "elk"))
    bench = replace(
        bench, methods=("gda",), shots=(2,), protocol="cross-dataset", source="one",
        datasets=("bare", "whole"),
    )  # fmt: skip
    outcome, _ = ran(bench)
    assert [(run.dataset, isinstance(run, Result)) for run in outcome.runs] == [
        ("bare", False),
        ("whole", True),
    ]


def test_a_result_of_another_cell_than_planned_is_not_taken_for_it(bench: Bench) -> None:
    cell = plan(bench).cells[0]
    write_store(bench.store, "one", seed=3)
    [outcome], _ = Attempt(bench.out, predictions=False)([cell])
    assert isinstance(outcome, Failure)
    assert "was replaced while the benchmark ran" in outcome.error


def test_a_wrong_plan_is_not_blamed_on_the_store(bench: Bench) -> None:
    cell = plan(bench).cells[0]
    [outcome], _ = Attempt(bench.out, predictions=False)(
        [replace(cell, run=replace(cell.run, tune="full-val"))]
    )
    assert isinstance(outcome, Failure)
    assert "was replaced" not in outcome.error
    assert "tune is 'none', planned 'full-val'" in outcome.error
    assert outcome.trace


def test_two_benchmarks_on_one_folder_are_refused(bench: Bench) -> None:
    bench.out.mkdir()
    with (
        FileLock(bench.out / ".lock"),
        pytest.raises(UserError, match="another benchmark is writing to"),
    ):
        ran(bench)
    ran(bench)


def test_a_folder_that_cannot_be_made_is_refused(bench: Bench) -> None:
    bench.out.write_text("a file")
    with pytest.raises(UserError, match=r"cannot make the folder .*: File exists"):
        ran(bench)


def test_several_processes_reach_what_one_does(bench: Bench) -> None:
    one, _ = ran(bench)
    two, _ = ran(replace(bench, jobs=2, out=bench.out.with_name("out2")))
    for mine, theirs in zip(one.runs, two.runs, strict=True):
        assert isinstance(mine, Result)
        assert isinstance(theirs, Result)
        assert mine.run == theirs.run
        assert mine.accuracy == theirs.accuracy
        assert mine.hyperparameters == theirs.hyperparameters


AGAIN: list[dict[str, Any]] = [
    {},
    {"settings": {"alpha": ("2.5",)}, "prompts": ("templates",), "tune": "val"},
    {"methods": ("zero-shot",)},
    {"protocol": "base-to-new"},
    {"imbalance": "step:2"},
    {"imbalance": "natural"},
    {"protocol": "domain-generalization", "source": "one"},
]


@pytest.mark.parametrize("asked", AGAIN)
def test_the_command_that_is_told_repeats_the_cell(asked: dict[str, Any], bench: Bench) -> None:
    values: dict[str, Any] = {"methods": ("gda",), "shots": (2,), **asked}
    bench = replace(bench, **values)
    cell = plan(bench).cells[-1]
    program, *arguments = shlex.split(again(bench, cell))
    assert program == "fewshot"
    assert main(arguments) == 0
    assert [result.run for result in read(log(bench))] == [cell.run]


def cell(method: str, dataset: str, shots: int) -> Cell:
    run = replace(RESULT.run, method=method, dataset=dataset, fitted_on=dataset, shots=shots)
    nowhere: Any = None
    return Cell(replace(run, model="toy"), Protocol(shots=shots), nowhere, nowhere)


def test_the_time_left_is_that_of_the_cells_most_alike() -> None:
    gda, far, ridge = cell("gda", "one", 4), cell("gda", "two", 16), cell("ridge", "one", 4)
    pace = Pace([gda, gda, far, ridge], jobs=1)
    assert pace.left() is None
    pace.learn(gda.run, 2.0)
    assert pace.left() == 4 * 2.0
    pace.finish(gda)
    assert pace.left() == 3 * 2.0
    pace.learn(ridge.run, 10.0)
    assert pace.left() == 2.0 + 2.0 + 10.0
    pace.learn(cell("gda", "three", 16).run, 30.0)
    assert pace.left() == 2.0 + 30.0 + 10.0
    assert Pace([], 1).left() is None


def test_several_processes_halve_the_time_left() -> None:
    one = cell("gda", "one", 4)
    pace = Pace([one] * 4, jobs=2)
    pace.learn(one.run, 3.0)
    assert pace.left() == 6.0


def test_plain_lines_tell_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    cells = [cell("gda", "one", 1), cell("gda", "one", 1)]
    pace = Pace(cells, jobs=1)
    with Display(3, 1, pace).shown() as display:
        display.started(cells[0])
        pace.learn(cells[0].run, 75.0)
        display.finished(cells[0])
        display.started(cells[1])
        display.finished(cells[1])
    assert capsys.readouterr().err.splitlines() == [
        "1/3 cells, gda one toy 1 shot, seed 1",
        "2/3 cells, 1m15s left, gda one toy 1 shot, seed 1",
        "2/3 cells, 1m15s left, gda one toy 1 shot, seed 1",
        "3/3 cells",
    ]


def test_plain_lines_are_kept_apart_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    one = cell("gda", "one", 1)
    with Display(50, 0, Pace([one] * 50, jobs=1)).shown() as display:
        for _ in range(50):
            display.started(one)
            display.finished(one)
    assert capsys.readouterr().err == "50/50 cells\n"


def test_a_terminal_gets_a_bar_and_lines_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    one = cell("gda", "one", 4)
    with Display(2, 1, Pace([one], jobs=1)).shown() as display:
        display.started(one)
        display.say("failed: [red] is no markup")
        display.finished(one)
    shown = capsys.readouterr().err
    assert "failed: [red] is no markup" in shown
    assert "2/2" in shown
