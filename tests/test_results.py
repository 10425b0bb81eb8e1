import json
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
from fewshot.results.log import Result, append, read

HYPERPARAMETERS = {"alpha": 8.0, "shrinkage": "published"}
RESULT = Result(
    method="gda",
    dataset="dtd",
    model="RN50/openai",
    setting="few-shot",
    fitted_on="dtd",
    shots=4,
    seed=1,
    tune="cv",
    imbalance=None,
    accuracy=0.5625,
    per_class_accuracy=0.5,
    accuracies={},
    hyperparameters=HYPERPARAMETERS,
    fixed=["shrinkage"],
    measures={},
    text_recipe=None,
    prompt_set=None,
    n_classes=47,
    n_support=188,
    n_views=1,
    n_validation=0,
    n_test=1692,
    fit_seconds=0.25,
    predict_seconds=0.125,
    predictions=None,
    fingerprint="0" * 64,
    version="0.1.0",
)
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


def test_what_came_out_does_not_change_the_cell_and_what_was_asked_for_does() -> None:
    cell = RESULT.cell()
    came_out: dict[str, Any] = {
        "accuracy": 0.1, "per_class_accuracy": 0.1, "accuracies": {"base": 0.1},
        "measures": {"residual_size": 0.1}, "fit_seconds": 9.0, "predict_seconds": 9.0,
        "predictions": "p.npz", "version": "9",
        "hyperparameters": {**HYPERPARAMETERS, "alpha": 1.0},
    }  # fmt: skip
    for name, value in came_out.items():
        assert replace(RESULT, **{name: value}).cell() == cell, name
    asked: dict[str, Any] = {
        "method": "ridge", "dataset": "sun", "model": "tiny", "setting": "imbalanced",
        "fitted_on": "sun", "shots": 2, "seed": 2, "tune": "none", "imbalance": "step:2",
        "prompt_set": "cupl", "n_views": 2, "fingerprint": "1", "fixed": ["alpha", "shrinkage"],
        "hyperparameters": {**HYPERPARAMETERS, "shrinkage": "oas"},
    }  # fmt: skip
    for name, value in asked.items():
        assert replace(RESULT, **{name: value}).cell() != cell, name


def test_saving_predictions_changes_the_result_only_by_their_file() -> None:
    saved = RESULT.saved_as("p.npz")
    assert saved.predictions == "p.npz"
    assert replace(saved, predictions=None) == RESULT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (RESULT.to_json()[:50], "it is not JSON"),
        ("[1]", "missing or unknown: accuracies, accuracy, dataset"),
        (RESULT.to_json()[:-1] + ', "color": 1}', "missing or unknown: color"),
    ],
)
def test_what_is_no_result_is_refused(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Result.from_json(line)


def test_results_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.jsonl"
    results = [replace(RESULT, seed=seed) for seed in range(3)]
    for result in results:
        append(path, result)
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
