"""Predictions as files: one file, or a folder of parts, which a run that stopped continues.

A file appears whole or not at all. `predictions.json` in a folder says what its parts are of, so
that parts of two adapters or stores never lie side by side.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cache.errors import UserError
from cache.files.atomic import replacing
from cache.files.json_text import parse_json
from fewshot.adapters import output
from fewshot.adapters.image_results import Prediction, Unreadable

FORMS = ("csv", "jsonl", "parquet")
PART = 65_536  # images in a part
ROW_GROUP = 4096
_HEADER = "predictions.json"

Results = Iterable[Prediction | Unreadable]


def require_form(path: Path, form: str) -> str:
    """The form of a file by its name, or of the parts of a folder by `form`; csv for a table.

    Raises:
        UserError: The name ends otherwise, or the library for the form is not installed.
    """
    if path.suffix:
        form = path.suffix.removeprefix(".")
    form = "csv" if form == "table" else form
    if form not in FORMS:
        raise UserError(
            f"predictions are written to a file that ends in {', '.join(f'.{f}' for f in FORMS)}, "
            f"or to a folder, whose name has no ending; got {path}"
        )
    if form == "parquet":
        _pyarrow()
    return form


def write_file(results: Results, path: Path, form: str) -> None:
    """Write predictions, whole or not at all.

    Args:
        results: As many classes in each.
        path: The file.
        form: One of `FORMS`; only jsonl has a line for an image that could not be read.
    """
    with replacing(path) as temporary:
        if form == "parquet":
            _write_parquet(results, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines(output.lines(results, form))


def write_parts(
    predictions: Callable[[int, int], Results],
    n_images: int,
    folder: Path,
    form: str,
    of: Mapping[str, Any],
    *,
    shard: tuple[int, int] = (1, 1),
    advance: Callable[[int], None] = lambda n: None,
) -> int:
    """Write the parts of a folder that are not there yet; the number of images already there.

    Args:
        predictions: From start and stop to the predictions of the images between.
        n_images: M, of all parts.
        folder: Holds part-00000.csv and so on, `PART` images in each but the last.
        form: One of `FORMS`.
        of: The adapter, the store, and all that changes a prediction.
        shard: (i, n): only every n-th part, from the i-th on, so that n processes share the work.
        advance: Called with the number of images after each part, those already there included.

    Raises:
        UserError: The folder has predictions of something else.
    """
    _claim(folder, {**of, "images": n_images, "images per part": PART, "form": form})
    i, n = shard
    there = 0
    for start in range((i - 1) * PART, n_images, n * PART):
        stop = min(start + PART, n_images)
        path = folder / f"part-{start // PART:05}.{form}"
        if path.exists():
            there += stop - start
        else:
            write_file(predictions(start, stop), path, form)
        advance(stop - start)
    return there


def _claim(folder: Path, of: Mapping[str, Any]) -> None:
    """Say what a folder is of, or raise where it is of something else."""
    header = folder / _HEADER
    if header.is_file():
        found = parse_json(header.read_bytes(), str(header))
        if found != of:
            had = found if isinstance(found, dict) else {}
            key = next((key for key in of if had.get(key) != of[key]), "more")
            raise UserError(
                f"{folder} has other predictions: {key} is {had.get(key)} there, and "
                f"{of.get(key)} here; name another folder, or remove this one"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise UserError(f"{folder} is no folder of predictions; name another, or a new one")
    with replacing(header) as temporary:
        temporary.write_text(json.dumps(of, indent=1) + "\n")


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError(
            "parquet needs pyarrow, which is not here; install it with: "
            "pip install 'fewshot-clip[parquet]'"
        ) from None
    return pyarrow


def _write_parquet(results: Results, path: Path) -> None:
    """One row for each image that could be read: path, label, confidence, what else was asked."""
    pa = _pyarrow()
    readable = (one for one in results if isinstance(one, Prediction))
    first = next(readable, None)
    fields = [("path", pa.string()), ("label", pa.string()), ("confidence", pa.float64())]
    if first and first.p_value is not None:
        fields.append(("p_value", pa.float64()))
    if first and first.prediction_set is not None:
        fields.append(("set", pa.list_(pa.string())))
    if first and first.label_probabilities is not None:
        fields.append(("label_probabilities", pa.list_(pa.float64())))
    fields += [("classes", pa.list_(pa.string())), ("probabilities", pa.list_(pa.float64()))]
    columns = {"set": "prediction_set"}
    with pa.parquet.ParquetWriter(path, pa.schema(fields)) as file:
        rows = chain([first] if first else [], readable)
        while group := list(islice(rows, ROW_GROUP)):
            values = [
                [_plain(getattr(one, columns.get(name, name))) for one in group]
                for name, _ in fields
            ]
            file.write_table(pa.table(values, schema=pa.schema(fields)))


def _plain(value: Any) -> Any:
    """As Parquet has it: text that is no UTF-8, as paths may be, becomes escapes."""
    if isinstance(value, str):
        return output.encodable(value, "utf-8")
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
