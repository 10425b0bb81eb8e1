"""Runs at MLflow, TensorBoard and Weights & Biases, read back where these are installed."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache.errors import UserError
from cli import main
from fewshot.results import loggers
from fewshot.results.log import read
from fewshot.results.loggers import RunLogger
from tests.toy_results import result

DONE = result(
    accuracy=0.75, accuracies={"base": 0.5}, measures={"trained_parameters": 7.0},
    hyperparameters={"alpha": 2.0, "grid": [1, 2]}, fixed={"alpha": 2.0},
)  # fmt: skip


class Standin:
    """A logger that remembers, and fails in one of its functions if asked to."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[tuple[Any, ...]] = []

    def _called(self, what: str, *values: Any) -> None:
        self.calls.append((what, *values))
        if what == self.failing:
            raise ConnectionError("no server there\nat all")

    def open(self, name: str, folder: Path) -> "Standin":
        self._called("open", name, folder)
        return self

    def step(self, step: int, values: loggers.Values) -> None:
        self._called("step", step, dict(values))

    def result(self, settings: loggers.Settings, values: loggers.Values) -> None:
        self._called("result", dict(settings), dict(values))

    def close(self, failed: bool) -> None:
        self._called("close", failed)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Standin:
    """Stands in for wandb."""
    one = Standin()
    monkeypatch.setitem(loggers.LOGGERS, "wandb", one.open)
    monkeypatch.setattr(loggers, "find_spec", lambda name: SimpleNamespace(origin="there"))
    return one


def a_training(logger: RunLogger) -> list[int]:
    """Two steps and a result; the steps that progress saw."""
    seen: list[int] = []
    with logger.run("coop dtd"):
        watch = logger.watching(lambda step, *rest: seen.append(step))
        watch(1, 2.5, 0.25, 0.1)
        watch(2, 1.5, float("nan"), 0.05)
        logger.result(DONE)
    return seen


def test_a_training_is_one_run_with_its_losses_rates_and_result(standin: Standin) -> None:
    said: list[str] = []
    assert a_training(RunLogger("wandb", Path("out"), said.append)) == [1, 2]
    opened, first, second, (_, settings, figures), closed = standin.calls
    assert opened == ("open", "coop dtd", Path("out"))
    batch = {"loss": 2.5, "accuracy on the batch": 0.25, "learning rate": 0.1}
    assert first == ("step", 1, batch)
    assert second == ("step", 2, {"loss": 1.5, "learning rate": 0.05})  # NaN is no value
    assert {"alpha": 2.0, "grid": "[1, 2]", "method": "gda", "shots": 4}.items() <= settings.items()
    assert "fixed" not in settings
    cost = {"trained_parameters": 7.0, "fit_seconds": 0.1}
    assert ({"accuracy": 0.75, "base": 0.5} | cost).items() <= figures.items()
    assert closed == ("close", False)
    assert said == []


@pytest.mark.parametrize("failing", ["open", "step", "result", "close"])
def test_a_logger_that_fails_is_one_warning_and_stops_nothing(
    standin: Standin, failing: str
) -> None:
    standin.failing = failing
    said: list[str] = []
    logger = RunLogger("wandb", Path("out"), said.append)
    assert a_training(logger) == [1, 2]
    n = len(standin.calls)
    a_training(logger)
    logger.result(DONE)
    assert len(standin.calls) == n  # it is not asked again
    assert said == ["--log-to wandb failed and is left out from here on: no server there"]


def test_a_run_that_is_interrupted_is_closed_as_failed(standin: Standin) -> None:
    logger = RunLogger("wandb", Path("out"), print)
    with pytest.raises(KeyboardInterrupt), logger.run("coop dtd"):
        raise KeyboardInterrupt
    assert standin.calls[-1] == ("close", True)


def test_a_result_by_itself_is_a_run_of_its_own(standin: Standin) -> None:
    RunLogger("wandb", Path("out"), print).result(DONE)
    assert [what for what, *_ in standin.calls] == ["open", "result", "close"]
    assert standin.calls[0][1] == DONE.label


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["absent", "a folder"])
def test_a_package_that_is_absent_is_one_line_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, spec: object
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"needs mlflow; pip install 'fewshot-clip\[mlflow\]'"):
        RunLogger("mlflow", Path("out"), print)
    a_training(RunLogger("none", Path("out"), print))  # needs no package


def test_fit_and_bench_write_each_result(
    standin: Standin, digits_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ["--store", str(digits_store), "--log-to", "wandb"]
    assert main(["fit", "nearest-mean", "--shots", "1,2", *store]) == 0
    asked = ["--methods", "nearest-mean", "--datasets", "digits", "--models", "tiny"]
    assert main(["bench", *asked, "--shots", "4", "--seeds", "1,2", *store, "--out", "b"]) == 0
    results = [one for out in ("runs", "b") for one in read(Path(out) / "results.jsonl")]
    written = [figures["accuracy"] for what, *_, figures in standin.calls if what == "result"]
    assert written == [one.accuracy for one in results]
    assert len(written) == 4
    assert [folder for what, *_, folder in standin.calls if what == "open"] == [
        Path("runs"), Path("runs"), Path("b"), Path("b"),
    ]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An empty folder to work in, and what is said, which shall be nothing."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    yield said
    assert said == []


def test_tensorboard_reads_the_curves_and_the_result(here: list[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    a_training(RunLogger("tensorboard", Path("runs"), here.append))
    [folder] = Path("runs/tensorboard").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    assert [one.value for one in read.Scalars("accuracy")] == [0.75]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_the_curves_the_settings_and_the_result(
    here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    a_training(RunLogger("mlflow", Path("runs"), here.append))
    client = mlflow.MlflowClient()
    [experiment] = [e for e in client.search_experiments() if e.name == loggers.EXPERIMENT]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("coop dtd", "FINISHED")
    assert run.data.params["alpha"] == "2.0"
    assert run.data.metrics["accuracy"] == 0.75
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in losses] == [(1, 2.5), (2, 1.5)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_curves_the_settings_and_the_result_offline(
    here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    a_training(RunLogger("wandb", Path("runs"), here.append))
    [file] = Path("wandb").glob("offline-run-*/*.wandb")
    written = file.read_bytes()  # records of protobuf, with names and values as text
    for text in ("coop dtd", "loss", "2.5", "learning rate", "alpha", "fit_seconds", "0.75"):
        assert text.encode() in written, text
