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
from fewshot.run import Run

SCHEMA = 1  # of a line; a change that a reader has to know of makes it another


@dataclass(frozen=True, kw_only=True)
class Result(Run):
    """A run, and what came of it on the dataset's test split.

    Attributes:
        accuracy: Top-1 over the whole test split, 0..1; from base to new, the harmonic mean.
        per_class_accuracy: Mean over the classes of the accuracy within each, 0..1.
        accuracies: Those of parts of the test split: `base` and `new`, or `many`, `medium`, `few`.
        hyperparameters: The method's fields, as tuned.
        measures: Numbers about the classifier itself, such as `trained_parameters`.
        text_recipe: How text features were made of the prompts: by a recipe of the store's, `live`
            by the model itself, or None where there was no text.
        n_classes: C of the test split.
        n_support: N, images that were learned from.
        n_validation: Labeled images besides the support set that tuning looked at.
        n_test: Images of the test split.
        fit_seconds: Tuning and fitting, from features in memory.
        predict_seconds: Classifying the test split, from features in memory.
        predictions: The file of predictions, where they were saved.
        version: This program's.
    """

    accuracy: float
    per_class_accuracy: float
    accuracies: dict[str, float]
    hyperparameters: dict[str, Any]
    measures: dict[str, float]
    text_recipe: str | None
    n_classes: int
    n_support: int
    n_validation: int
    n_test: int
    fit_seconds: float
    predict_seconds: float
    predictions: str | None
    version: str

    def saved_as(self, predictions: str) -> "Result":
        """The same with the file of its predictions."""
        return replace(self, predictions=predictions)

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Result":
        """The result of a line that `to_json` made, here or in an earlier version.

        Fields that this version does not know are left out: within a schema, fields are only added.

        Raises:
            UserError: It is not such a line, or of a later schema.
        """
        try:
            values = json.loads(line)
        except ValueError:
            raise UserError(f"not a result, for it is not JSON: {line!r:.60}") from None
        if not isinstance(values, dict):
            raise UserError(f"not a result, for it is no JSON object: {line!r:.60}")
        schema = values.get("schema", 0)
        if schema not in range(SCHEMA + 1):
            raise UserError(
                f"of schema {schema}, written by version {values.get('version')}; this version "
                f"reads schemas up to {SCHEMA}; update the program"
            )
        values = _upgraded(values) if schema == 0 else values
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise UserError(f"not a result; missing: {', '.join(sorted(missing))}")
        return cls(**{name: values[name] for name in names})


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a line from before schemas: fixed settings were names, and spelling British."""
    fixed, chosen = values.get("fixed"), values.get("hyperparameters")
    if not isinstance(fixed, list) or not isinstance(chosen, dict):
        raise UserError("not a result; fixed must be a list, and hyperparameters an object")
    chosen = {_RENAMED.get(name, name): value for name, value in chosen.items()}
    names = [_RENAMED.get(str(name), str(name)) for name in fixed]
    setting = str(values.get("setting"))
    return {
        **values,
        "setting": setting.replace("generalisation", "generalization"),
        "blend": "auto" if _never_blended(values) else 1.0,
        "hyperparameters": chosen,
        "fixed": {name: chosen.get(name) for name in names},
    }


def _never_blended(values: dict[str, Any]) -> bool:
    """True if the line's method stands alone in every version."""
    alone = ("zero-shot", "nearest-mean", "linear-probe", "gda-em", "transclip")
    return values.get("method") in alone or values.get("text_recipe") == "live"


_RENAMED = {"neighbours": "neighbors"}


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
    that names them. Results come with the path at which their predictions are found now: as it was
    written, or beside the file.

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
            results.append(_located(Result.from_json(line), path))
        except UserError as error:
            warnings.warn(f"{path}, line {number} skipped: {error}", stacklevel=2)
    return results


def program_version() -> str:
    """The installed version of this program; `unknown` in a checkout that was not installed."""
    try:
        return version("fewshot-clip")
    except PackageNotFoundError:
        return "unknown"


def _located(result: Result, file: Path) -> Result:
    """The result with the path of its predictions that exists, if one does."""
    if result.predictions is None or Path(result.predictions).is_file():
        return result
    written = Path(result.predictions)
    for guess in (
        file.parent / written,
        file.parent / written.name,
        file.parent / written.parent.name / written.name,
    ):
        if guess.is_file():
            return result.saved_as(str(guess))
    return result


def _write(descriptor: int, line: bytes, size: int) -> None:
    """Write in one call, and cut back to the old size if not all of it fitted."""
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, size)
        raise
