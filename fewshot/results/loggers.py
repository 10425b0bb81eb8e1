"""Runs written to MLflow, TensorBoard or Weights & Biases beside this program's own results.

Where these keep them is theirs to say: MLFLOW_TRACKING_URI, WANDB_MODE=offline and the like.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from cache.errors import UserError
from cache.files.names import safe_name
from fewshot.results.log import Result

EXPERIMENT = "fewshot"  # of MLflow, and the project of Weights & Biases
Values = Mapping[str, float]
Settings = Mapping[str, str | int | float | bool]
Watch = Callable[[int, float, float, float], None]  # as `train.Watch`


class RunLog(Protocol):
    """One run at a logger."""

    def step(self, step: int, values: Values) -> None:
        """Write the values after a step of training."""

    def result(self, settings: Settings, values: Values) -> None:
        """Write the settings of the run, and its result."""

    def close(self, failed: bool) -> None:
        """End the run."""


class _MLflowRun:
    def __init__(self, name: str, folder: Path) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(EXPERIMENT)
        mlflow.start_run(run_name=name)

    def step(self, step: int, values: Values) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def result(self, settings: Settings, values: Values) -> None:
        self._mlflow.log_params(dict(settings))
        self._mlflow.log_metrics(dict(values))

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _TensorBoardRun:
    def __init__(self, name: str, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        when = time.strftime("%Y%m%d-%H%M%S")  # curves of two runs in one folder are one zigzag
        path = folder / "tensorboard" / f"{safe_name(name)}-{when}"
        self._writer: Any = SummaryWriter(str(path))

    def step(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def result(self, settings: Settings, values: Values) -> None:
        self._writer.add_hparams(dict(settings), dict(values), run_name=".")

    def close(self, failed: bool) -> None:
        self._writer.close()


class _WandbRun:
    def __init__(self, name: str, folder: Path) -> None:
        import wandb

        self._run: Any = wandb.init(project=EXPERIMENT, name=name)

    def step(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def result(self, settings: Settings, values: Values) -> None:
        self._run.config.update(dict(settings))
        self._run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


LOGGERS: dict[str, Callable[[str, Path], RunLog]] = {
    "mlflow": _MLflowRun,
    "tensorboard": _TensorBoardRun,
    "wandb": _WandbRun,
}


class RunLogger:
    """Writes runs to a logger. Its first failure is one warning, and the last it is asked for.

    Args:
        name: One of `LOGGERS`, whose package and extra have the same name; or none.
        folder: Of results, where a logger without a place of its own writes.
        say: Called with the warning.

    Raises:
        UserError: The package is not installed.
    """

    def __init__(self, name: str, folder: Path, say: Callable[[str], None]) -> None:
        if name != "none" and not _installed(name):
            raise UserError(
                f"--log-to {name} needs {name}; pip install 'fewshot-clip[{name}]' "
                f"(in a checkout: pip install '.[{name}]')"
            )
        self._name, self._folder, self._say = name, folder, say
        self._open = LOGGERS.get(name)
        self._run: RunLog | None = None

    @contextlib.contextmanager
    def run(self, name: str) -> Iterator[None]:
        """Open a run for as long as the block lasts; one that raises has failed.

        Args:
            name: Of the run.
        """
        if self._open is not None:
            opening = self._open
            self._guarded(lambda: setattr(self, "_run", opening(name, self._folder)))
        failed = True
        try:
            yield
            failed = False
        finally:
            if (run := self._run) is not None:
                self._guarded(lambda: run.close(failed))
            self._run = None

    def watching(self, watch: Watch, prefix: str = "") -> Watch:
        """The same function to call after each step of training, which writes its values as well.

        Args:
            watch: The function.
            prefix: Of the values' names.
        """

        def both(step: int, loss: float, accuracy: float, rate: float) -> None:
            watch(step, loss, accuracy, rate)
            values = {"loss": loss, "accuracy on the batch": accuracy, "learning rate": rate}
            self._step(step, {f"{prefix}{k}": v for k, v in values.items() if not math.isnan(v)})

        return both

    def result(self, result: Result) -> None:
        """Write a result as that of the open run, or as a run of its own."""
        if self._run is None and self._open is not None:
            with self.run(result.label):
                self.result(result)
        elif (run := self._run) is not None:
            self._guarded(lambda: run.result(settings_of(result), figures_of(result)))

    def _step(self, step: int, values: Values) -> None:
        if (run := self._run) is not None:
            self._guarded(lambda: run.step(step, values))

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write; a failure of whatever kind must not stop a training of many hours."""
        try:
            write()
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            self._say(f"--log-to {self._name} failed and is left out from here on: {reason}")
            self._open = self._run = None


def _installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of runs is called wandb too


def settings_of(result: Result) -> Settings:
    """The run of a result and its hyper-parameters as tuned; lists and dictionaries as text."""
    given = result.hyperparameters | asdict(result.run)
    del given["fixed"]  # all of which are hyper-parameters
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in given.items()
        if value is not None
    }


def figures_of(result: Result) -> Values:
    """The accuracies of a result, its cost, and its measures of the classifier."""
    found = {
        name: getattr(result, name)
        for name in ("accuracy", "per_class_accuracy", "n_support", "n_validation", "n_test",
                     "fit_seconds", "predict_seconds")
    }  # fmt: skip
    return {**result.measures, **result.accuracies, **found}
