import json
import math
import multiprocessing
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cache.errors import UserError
from fewshot.results.log import SCHEMA, Result, append, read
from tests.toy_results import result

HYPERPARAMETERS: dict[str, Any] = {"alpha": 8.0, "shrinkage": "published"}
RESULT = result(
    model="RN50/openai", hyperparameters=HYPERPARAMETERS, fixed={"shrinkage": "published"}
)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(RESULT.to_json()) | values)


PROMISED = (
    "method dataset model shots seed tune accuracy hyperparameters n_support fit_seconds "
    "predict_seconds fingerprint version setting fitted_on imbalance accuracies fixed measures "
    "n_classes predictions"
)


def test_a_result_is_one_json_line_and_back() -> None:
    line = RESULT.to_json()
    assert "\n" not in line
    assert Result.from_json(line) == RESULT
    assert set(PROMISED.split()) <= set(json.loads(line))


def test_what_came_out_does_not_change_the_run_and_what_was_asked_for_does() -> None:
    run = RESULT.run
    came_out: dict[str, Any] = {
        "accuracy": 0.1, "per_class_accuracy": 0.1, "accuracies": {"base": 0.1},
        "measures": {"residual_size": 0.1}, "fit_seconds": 9.0, "predict_seconds": 9.0,
        "predictions": "p.npz", "version": "9",
        "hyperparameters": {**HYPERPARAMETERS, "alpha": 1.0},
    }  # fmt: skip
    for name, value in came_out.items():
        assert replace(RESULT, **{name: value}).run == run, name
    asked: dict[str, Any] = {
        "method": "ridge", "dataset": "sun", "model": "tiny", "setting": "imbalanced",
        "fitted_on": "sun", "shots": 2, "seed": 2, "tune": "none", "imbalance": "step:2",
        "prompt_set": "cupl", "n_views": 2, "fingerprint": "1", "fixed": {"shrinkage": "oas"},
    }  # fmt: skip
    for name, value in asked.items():
        assert replace(RESULT, **{name: value}).run != run, name


def test_saving_predictions_changes_the_result_only_by_their_file() -> None:
    saved = RESULT.saved_as("p.npz")
    assert saved.predictions == "p.npz"
    assert replace(saved, predictions=None) == RESULT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (RESULT.to_json()[:50], "it is not JSON"),
        ("[1]", "it is no JSON object"),
        ('{"schema": 1}', "method: expected a value, got nothing"),
        (changed(accuracy=None), "accuracy: expected a valid number, got None"),
        (changed(accuracy=1.5), "accuracy: expected less than or equal to 1, got 1.5"),
        (changed(accuracy=math.nan), "accuracy: expected a finite number, got nan"),
        (changed(shots="4"), "shots: expected a valid integer, got '4'"),
        (changed(shots=True), "shots: expected a valid integer, got True"),
        (changed(n_test=0), "n_test: expected greater than or equal to 1, got 0"),
        (changed(method=["gda"]), "method: expected a valid string"),
        (changed(fixed={"alpha": {"deep": 1}}), "fixed.alpha"),
        (changed(setting="base-to-new"), r"accuracies: expected base and new, got \[\]"),
        (changed(schema="1"), "schema: expected 0 to 1, got '1'"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_what_is_no_result_is_refused(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Result.from_json(line)


def old_line(**changes: Any) -> str:
    """A line as it was written before lines had a schema."""
    values = json.loads(RESULT.to_json()) | {"fixed": list(RESULT.fixed)} | changes
    return json.dumps(
        {name: value for name, value in values.items() if name not in ("schema", "blend")}
    )


def test_every_line_says_its_schema() -> None:
    assert json.loads(RESULT.to_json())["schema"] == SCHEMA == 1


def test_lines_from_before_schemas_are_read() -> None:
    assert Result.from_json(old_line()) == replace(RESULT, blend=1.0)
    assert Result.from_json(old_line(method="nearest-mean")).blend == "auto"
    british = Result.from_json(old_line(setting="domain-generalisation", fitted_on="imagenet"))
    assert british.setting == "domain-generalization"
    assert british.source == "imagenet"


def test_settings_that_were_renamed_are_read_by_their_old_name() -> None:
    chosen = {"neighbours": 3, "alpha": 1.0}
    again = Result.from_json(old_line(hyperparameters=chosen, fixed=["neighbours"]))
    assert again.fixed == {"neighbors": 3}
    assert again.hyperparameters == {"neighbors": 3, "alpha": 1.0}


def test_a_field_that_this_version_does_not_know_costs_no_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(RESULT.to_json()[:-1] + ', "color": 1}\n')
    assert read(path) == [RESULT]


def test_a_line_of_a_later_schema_is_skipped_with_a_warning_that_names_the_version(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    later = json.loads(RESULT.to_json()) | {"schema": 2, "version": "3.1"}
    path.write_text(json.dumps(later) + "\n" + RESULT.to_json() + "\n")
    with pytest.warns(UserWarning, match=r"line 1 skipped: of schema 2, .* version 3\.1; .*update"):
        assert read(path) == [RESULT]


@pytest.mark.parametrize("where", ["runs/old/p.npz", "old/p.npz", "p.npz"])
def test_predictions_are_found_beside_results_that_were_moved(tmp_path: Path, where: str) -> None:
    path = tmp_path / "moved" / "results.jsonl"
    append(path, RESULT.saved_as("runs/old/p.npz"))
    found = path.parent / where
    found.parent.mkdir(parents=True, exist_ok=True)
    found.touch()
    assert [r.predictions for r in read(path)] == [str(found)]


def test_predictions_that_are_nowhere_stay_where_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, RESULT.saved_as("runs/old/p.npz"))
    assert [r.predictions for r in read(path)] == ["runs/old/p.npz"]


def test_results_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.jsonl"
    results = [replace(RESULT, seed=seed) for seed in range(3)]
    for one in results:
        append(path, one)
    assert read(path) == results


def test_a_line_torn_by_a_crash_is_skipped_with_a_warning_and_spoils_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    with path.open("a") as file:
        file.write(RESULT.to_json()[:40])
    with pytest.warns(UserWarning, match=r"results\.jsonl, line 2 skipped: .*not JSON"):
        assert read(path) == [RESULT]
    append(path, replace(RESULT, seed=2))
    with pytest.warns(UserWarning, match="line 2 skipped"):
        assert read(path) == [RESULT, replace(RESULT, seed=2)]


def test_a_whole_line_that_only_lacks_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(RESULT.to_json())
    append(path, replace(RESULT, seed=2))
    assert read(path) == [RESULT, replace(RESULT, seed=2)]


def append_many(path: Path, seed: int) -> None:
    for shots in range(50):
        append(path, replace(RESULT, seed=seed, shots=shots))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads we do not use here
def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, seed)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    results = read(path)
    for seed in range(4):
        assert [r.shots for r in results if r.seed == seed] == list(range(50))


def test_a_run_waits_for_another_to_finish_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with FileLock(f"{path}.lock"):
        other = threading.Thread(target=append, args=(path, RESULT))
        other.start()
        other.join(timeout=0.2)
        assert other.is_alive()
        assert not path.exists()
    other.join()
    assert read(path) == [RESULT]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from typing import Any
from cache.errors import UserError
from fewshot.results.log import Result, append
path, line = Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20,) * 2)
try:
    append(path, Result.from_json(line))
except UserError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    before = path.read_bytes()
    command = [sys.executable, "-c", FULL_DISK, str(path), RESULT.to_json()]
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "cannot append the result to" in run.stderr
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(UserError, match=r"cannot append the result to .*: (Not a dir|File exists)"):
        append(blocked / "results.jsonl", RESULT)


def test_a_missing_file_of_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read results from .*: No such file"):
        read(tmp_path / "results.jsonl")
