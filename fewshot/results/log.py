"""One result is one JSON line; a file of results is a log that many runs append to."""

import errno
import json
import os
import warnings
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from cache.errors import UserError


@dataclass(frozen=True)
class Result:
    """What a method reached on a dataset's test split, and all it takes to say what that means.

    Attributes:
        method: The method's name.
        dataset: The dataset's name.
        model: The CLIP model's name.
        setting: Which task it was; results of different settings are never averaged. One of
            zero-shot, few-shot, imbalanced, unsupervised, base-to-new, domain-generalization and
            cross-dataset, with `transductive` before it where the test images were classified
            together.
        fitted_on: The dataset that was learned from.
        shots: K, images per class that the method learned from, or of the largest class where they
            differ; 0 for zero-shot.
        seed: What drew them; 0 where nothing was drawn.
        tune: The tuning protocol.
        imbalance: How unequal the classes were made; None where they are alike.
        accuracy: Top-1 over the whole test split, 0..1; from base to new, the harmonic mean.
        per_class_accuracy: Mean over the classes of the accuracy within each, 0..1.
        accuracies: Those of parts of the test split: `base` and `new`, or `many`, `medium`, `few`.
        hyperparameters: The method's fields, as tuned.
        fixed: Those of them that were set and not tuned.
        measures: What the classifier tells of itself, such as `trained_parameters`.
        text_recipe: How text features were made of the prompts: by a recipe of the store's, `live`
            by the model itself, or None where there was no text.
        prompt_set: Which prompts were asked for; None for the dataset's own.
        n_classes: C of the test split.
        n_support: N, images that were learned from.
        n_views: V, augmented views of each; 1 is its center crop alone.
        n_validation: Labeled images besides the support set that tuning looked at.
        n_test: Images of the test split.
        fit_seconds: Tuning and fitting, from features in memory.
        predict_seconds: Classifying the test split, from features in memory.
        predictions: The file of predictions, where they were saved.
        fingerprint: The store's that was tested on.
        version: This program's.
    """

    method: str
    dataset: str
    model: str
    setting: str
    fitted_on: str
    shots: int
    seed: int
    tune: str
    imbalance: str | None
    accuracy: float
    per_class_accuracy: float
    accuracies: dict[str, float]
    hyperparameters: dict[str, Any]
    fixed: list[str]
    measures: dict[str, float]
    text_recipe: str | None
    prompt_set: str | None
    n_classes: int
    n_support: int
    n_views: int
    n_validation: int
    n_test: int
    fit_seconds: float
    predict_seconds: float
    predictions: str | None
    fingerprint: str
    version: str

    def cell(self) -> dict[str, object]:
        """What was asked for, apart from what came out: equal for two runs of the same thing."""
        return {
            "method": self.method,
            "fixed": {name: self.hyperparameters[name] for name in self.fixed},
            "dataset": self.dataset,
            "model": self.model,
            "setting": self.setting,
            "fitted_on": self.fitted_on,
            "shots": self.shots,
            "seed": self.seed,
            "tune": self.tune,
            "imbalance": self.imbalance,
            "prompt_set": self.prompt_set,
            "n_views": self.n_views,
            "fingerprint": self.fingerprint,
        }

    def saved_as(self, predictions: str) -> "Result":
        """The same with the file of its predictions."""
        return replace(self, predictions=predictions)

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Result":
        """The result that `to_json` made the line of.

        Raises:
            UserError: It is not such a line, or another version's.
        """
        try:
            values = json.loads(line)
        except ValueError:
            raise UserError(f"not a result, for it is not JSON: {line!r:.60}") from None
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            keys = set(values) if isinstance(values, dict) else set()
            differing = ", ".join(sorted(keys ^ expected))
            raise UserError(f"not a result of this version; missing or unknown: {differing}")
        return cls(**values)


def append(path: Path, result: Result) -> None:
    """Add the result's line to the file, whole or not at all, however many runs do so at once.

    A line that a killed run left unfinished is ended first, so that it spoils no other.

    Raises:
        UserError: The file cannot be written, or the disk is full; the file is as it was.
    """
    line = (result.to_json() + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            _write(file.fileno(), line, size)
    except OSError as error:
        raise UserError(
            f"cannot append the result to {path}: {error.strerror}; "
            "make room, or write somewhere else"
        ) from None


def read(path: Path) -> list[Result]:
    """Every result in the file, in the order of writing.

    Lines that are no results, such as the last one of a killed run, are skipped with a warning
    that names them.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read results from {path}: {error.strerror}") from None
    results = []
    for number, line in enumerate(lines, start=1):
        try:
            results.append(Result.from_json(line))
        except UserError as error:
            warnings.warn(f"{path}, line {number} skipped: {error}", stacklevel=2)
    return results


def program_version() -> str:
    """The installed version of this program; `unknown` in a checkout that was not installed."""
    try:
        return version("fewshot-clip")
    except PackageNotFoundError:
        return "unknown"


def _write(descriptor: int, line: bytes, size: int) -> None:
    """Write in one call, and cut back to the old size if not all of it fitted."""
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, size)
        raise
