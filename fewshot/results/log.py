"""One result is one JSON line; a file of results is a log that many runs append to."""

import errno
import functools
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Interval
from filelock import FileLock

from cache.errors import UserError, printable
from cache.files.validation import problem
from fewshot.run import PARTS, Count, Plain, Run, plain_setting

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 1  # of a line; a change that a reader has to know of makes it another
Fraction = Annotated[float, Interval(ge=0, le=1)]
Seconds = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Result(Run):
    """A run, and what came of it on the dataset's test split.

    Attributes:
        accuracy: Top-1 over the whole test split, 0..1; from base to new and from open set, the
            harmonic mean of the first two `accuracies`; of several labels, mAP.
        per_class_accuracy: Mean over the classes of the accuracy within each, 0..1; of several
            labels, mAP.
        accuracies: Those of parts of the test split: `base` and `new`, `seen` and `unseen`, or
            `many`, `medium`, `few`; or `known`, with `auroc` and `fpr95` of known against unknown
            images; or `mAP`, and where there are thresholds `macro F1` and the like.
        hyperparameters: The method's fields, as tuned.
        measures: Numbers about the classifier itself, such as `trained_parameters`.
        text_recipe: How text features were made of the prompts: by a recipe of the store's, `live`
            by the model itself, or None where there was no text.
        n_classes: C of the test split.
        n_support: N, images that were learned from.
        n_validation: Labeled images besides the support set that tuning looked at.
        n_test: Images of the test split; from open set, those of known classes.
        fit_seconds: Tuning and fitting, from features in memory.
        predict_seconds: Classifying the test split, from features in memory.
        predictions: The file of predictions, where they were saved.
        version: This program's.
        by_class: Of several labels, by class id, the figures of each class by their names, such
            as `average precision` and `F1`; None for a class without a test image.
        classnames: C names by class id, where there is a `by_class`.
        image_digest: 16 hex digits that stand for the bytes of the images of the test split; None
            where they are unknown, as of imported features.
    """

    accuracy: Fraction
    per_class_accuracy: Fraction
    accuracies: dict[str, Fraction]
    hyperparameters: dict[str, Plain | list[Plain]]
    measures: dict[str, float]
    text_recipe: str | None
    n_classes: Annotated[Count, Ge(1)]
    n_support: Count
    n_validation: Count
    n_test: Annotated[Count, Ge(1)]
    fit_seconds: Seconds
    predict_seconds: Seconds
    predictions: str | None
    version: str
    by_class: dict[str, list[float | None]] | None = None
    classnames: list[str] | None = None
    image_digest: str | None = None

    __pydantic_config__: ClassVar[dict[str, bool]] = {"strict": True, "allow_inf_nan": False}

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
        except (ValueError, RecursionError):
            raise UserError(f"not a result, for it is not JSON: {line!r:.60}") from None
        if not isinstance(values, dict):
            raise UserError(f"not a result, for it is no JSON object: {line!r:.60}")
        schema = values.get("schema", 0)
        if type(schema) is not int or schema < 0:
            raise UserError(f"not a result; schema: expected 0 to {SCHEMA}, got {schema!r:.60}")
        if schema > SCHEMA:
            raise UserError(
                f"of schema {schema!s:.40}, written by version {values.get('version')!s:.40}; this "
                f"version reads schemas up to {SCHEMA}; update the program"
            )
        if schema == 0:
            line = json.dumps(_upgraded(values))
        return _checked(line)


def _checked(line: str) -> Result:
    """The result of a line of this schema, every value of it checked."""
    from pydantic import ValidationError

    try:
        result = _lines().validate_json(line)
    except ValidationError as error:
        raise UserError(f"not a result; {problem(error)}") from None
    parts = PARTS.get(plain_setting(result.setting), ())
    if not set(parts) <= result.accuracies.keys():
        raise UserError(
            f"not a result; accuracies: expected {' and '.join(parts)}, "
            f"got {sorted(result.accuracies)!s:.60}"
        )
    return result


@functools.cache
def _lines() -> "TypeAdapter[Result]":
    """The form of a line; pydantic takes a tenth of a second, which writing does not need."""
    from pydantic import TypeAdapter

    return TypeAdapter(Result)


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a line from before schemas: fixed settings were names, and spelling British."""
    fixed, chosen = values.get("fixed"), values.get("hyperparameters")
    if not isinstance(fixed, list) or not isinstance(chosen, dict):
        raise UserError("not a result; fixed: expected a list, and hyperparameters an object")
    chosen = {_RENAMED.get(name, name): value for name, value in chosen.items()}
    names = [_RENAMED.get(str(name), str(name)) for name in fixed]
    if not set(names) <= chosen.keys():
        raise UserError("not a result; fixed: expected names of hyperparameters")
    setting = values.get("setting")
    if isinstance(setting, str):
        setting = setting.replace("generalisation", "generalization")
    return {
        **values,
        "setting": setting,
        "blend": "auto" if _never_blended(values) else 1.0,
        "hyperparameters": chosen,
        "fixed": {name: chosen[name] for name in names},
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


def append_new(path: Path, result: Result) -> bool:
    """Add the result's line unless the file has one of the same run and accuracy; whether it did.

    Raises:
        UserError: What `append` and `read` raise.
    """
    known = read(path) if path.exists() else []
    if any((one.run, one.accuracy) == (result.run, result.accuracy) for one in known):
        return False
    append(path, result)
    return True


def read(path: Path, skipped: Callable[[str], None] = warnings.warn) -> list[Result]:
    """Every result in the file, in the order of writing.

    Results come with the path at which their predictions are found now: as it was written, or
    beside the file.

    Args:
        path: The file.
        skipped: Called with a sentence for each line that is no result, such as the last one of a
            killed run.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"cannot read results from {path}: {error.strerror}") from None
    results = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            results.append(_located(Result.from_json(line), path))
        except UserError as error:
            skipped(f"{path}, line {number} skipped: {printable(str(error))}")
    return results


def program_version() -> str:
    """The installed version of this program; `unknown` in a checkout that was not installed."""
    try:
        return version("fewshot-clip")
    except PackageNotFoundError:
        return "unknown"


def _located(result: Result, file: Path) -> Result:
    """The result with the path of its predictions that exists, if one does."""
    if result.predictions is None or _is_file(Path(result.predictions)):
        return result
    written = Path(result.predictions)
    for guess in (
        file.parent / written,
        file.parent / written.name,
        file.parent / written.parent.name / written.name,
    ):
        if _is_file(guess):
            return result.saved_as(str(guess))
    return result


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False


def _write(descriptor: int, line: bytes, size: int) -> None:
    """Write in one call, and cut back to the old size if not all of it fitted."""
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, size)
        raise
