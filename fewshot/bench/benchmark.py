"""A benchmark: all cells of a plan that are not done yet, in one process or several.

Results are appended to `OUT/results.jsonl` as they come, which is all that resuming needs: what
has its line there is done, and the same command continues with the rest. A cell that fails is
reported and the others run; `OUT/failures.jsonl` has the failures of the last run.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from cache.errors import UserError, count
from fewshot.bench.attempt import Attempt, Failure, checkpoint_of
from fewshot.bench.combination import Cell
from fewshot.bench.config import Bench
from fewshot.bench.plan import BenchPlan
from fewshot.bench.status import Display, Pace
from fewshot.bench.workers import WorkerDiedError, each
from fewshot.endtoend.finished import forget
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.results import log
from fewshot.results.log import Result
from fewshot.run import Run

Task = list[Cell]


@dataclass(frozen=True)
class BenchOutcome:
    """The results and failures of a benchmark.

    Attributes:
        runs: Every run of the plan, as its result where there is one, of now or of earlier.
        failures: Error -> the cells that failed with it.
    """

    runs: list[Run]
    failures: dict[str, list[Cell]]


def run(
    bench: Bench,
    plan: BenchPlan,
    say: Callable[[str], None],
    note: Callable[[Result], None] = lambda result: None,
) -> BenchOutcome:
    """Run the cells of the plan that are not done.

    Args:
        bench: What was asked for; where results go, and how many processes there are.
        plan: Its cells.
        say: Called with each line for the user.
        note: Called with each new result, once it is written.

    Raises:
        UserError: Another benchmark is writing there, or results cannot be written.
    """
    with _locked(bench.out):
        done = finished(bench, say)
        tasks = pending(bench, plan, say, done)
        known = {cell.run: done[cell.run] for cell in plan.cells if cell.run in done}
        failures: dict[str, list[Cell]] = {}
        report = bench.out / "failures.jsonl"
        report.unlink(missing_ok=True)
        pace = Pace((cell for task in tasks for cell in task), bench.jobs)
        for result in done.values():
            pace.learn(result, result.fit_seconds + result.predict_seconds)
        with Display(len(plan.cells), len(known), pace).shown() as display:
            for cell, outcome, seconds in _outcomes(bench, tasks, display):
                if isinstance(outcome, Result):
                    log.append(bench.out / "results.jsonl", outcome)
                    note(outcome)
                    forget(checkpoint_of(bench.out, cell))
                    known[cell.run] = outcome
                    pace.learn(cell.run, seconds)
                else:
                    _record(report, bench, cell, outcome)
                    if outcome.error not in failures:
                        display.say(f"failed: {cell.run.label}: {outcome.error}")
                    failures.setdefault(outcome.error, []).append(cell)
                display.finished(cell)
    if failures:
        n = sum(map(len, failures.values()))
        say(f"{count(n, 'cell')} failed, listed in {report}; the same command tries again:")
    for error, (cell, *others) in failures.items():
        more = f" and {len(others)} more" if others else ""
        say(f"  {cell.run.label}{more}: {error}\n    {_again(bench, cell)}")
    return BenchOutcome([known.get(cell.run, cell.run) for cell in plan.cells], failures)


def pending(
    bench: Bench,
    plan: BenchPlan,
    say: Callable[[str], None],
    done: Mapping[Run, Result] | None = None,
) -> list[Task]:
    """The part of the plan that is not done; prints a note on the rest."""
    for why in plan.left_out:
        say(f"left out: {why}")
    tasks = plan.tasks(finished(bench, say) if done is None else done)
    left = sum(map(len, tasks))
    cells = count(len(plan.cells), "cell")
    say(f"{cells}, {len(plan.cells) - left} of them done before; into {bench.out}")
    return tasks


def finished(bench: Bench, say: Callable[[str], None]) -> dict[Run, Result]:
    """The results that there are, by their run; of several the last."""
    path = bench.out / "results.jsonl"
    if not path.exists():
        return {}
    return {result.run: result for result in log.read(path, say)}


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Nobody else's, for as long as the block lasts; a killed holder's lock is free."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; give another") from None
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another benchmark is writing to {out}; wait until it is done, or give another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _again(bench: Bench, cell: Cell) -> str:
    """The command that runs the cell again and puts its result where it belongs."""
    trained = cell.run.method in TRAINED
    asked = replace(cell.run, fixed=cell.protocol.fixed)
    command = asked.command(bench.store, bench.out, end_to_end=trained)
    return f"{command} {shlex.join(cell.train.words())}".rstrip() if trained else command


def _record(path: Path, bench: Bench, cell: Cell, failure: Failure) -> None:
    """Add the failure to the file of them."""
    record = {"cell": asdict(cell.run), "error": failure.error, "again": _again(bench, cell)}
    if failure.trace:
        record["trace"] = failure.trace
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _outcomes(
    bench: Bench, tasks: Sequence[Task], display: Display
) -> Iterator[tuple[Cell, Result | Failure, float]]:
    """Each cell with what came of it, and the seconds it took."""
    # Other processes have no way to the display.
    note = display.note if bench.jobs == 1 and bench.engine == "process" else None
    run_one = Attempt(bench.out, bench.predictions, note)
    gpus = int(bench.train.device == "cuda")
    for task, done in each(
        run_one, tasks, bench.jobs, lambda task: display.started(task[0]), bench.engine, gpus
    ):
        if isinstance(done, WorkerDiedError):
            done = [Failure(str(done))] * len(task), 0.0
        outcomes, seconds = done
        for cell, outcome in zip(task, outcomes, strict=True):
            yield cell, outcome, seconds / len(task)
