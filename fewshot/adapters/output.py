r"""Predictions as lines of text: a table, CSV, or JSON lines, each written as soon as it is known.

    table  aligned columns, for reading; their widths are chosen by the first images
    csv    one row for each image that could be read, names in the first row; a text that a
           spreadsheet would take for a formula begins with an apostrophe; the classes of a set
           have semicolons between them, and so have the labels of an image of several
    jsonl  one object for each image; {"path", "error"} for one that could not be read

Bytes of a path that are not UTF-8 become \udc80 to \udcff. In JSON lines that is Python's own form,
from which `os.fsencode` has them back.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from rich.cells import cell_len, set_cell_size

from cache.errors import printable, unknown
from fewshot.adapters.image_results import Prediction, Unreadable
from fewshot.tables import aligned, column_widths, spreadsheet_safe

FORMATS = ("table", "csv", "jsonl")
BLOCK = 32  # images that the widths of a table are chosen by

Results = Iterable[Prediction | Unreadable]


def lines(results: Results, form: str, width: int | None = None) -> Iterator[str]:
    """The lines of the output, each with its newline, as the results come.

    Args:
        results: As many classes in each prediction.
        form: `table`, `csv` or `jsonl`.
        width: Of the terminal, in columns, that a table keeps to; without it nothing is cut.

    Raises:
        UserError: No such form.
    """
    require_format(form)
    match form:
        case "csv":
            return _csv(results)
        case "jsonl":
            return _jsonl(results)
        case _:
            return _table(results, width)


def require_format(form: str) -> None:
    """Raise unless there is such a form.

    Raises:
        UserError: There is none.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)


def encodable(text: str, encoding: str | None) -> str:
    """The text, with escapes for what an encoding does not have."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _csv(results: Results) -> Iterator[str]:
    header = False
    for one in results:
        if isinstance(one, Unreadable):
            continue
        if not header:
            header = True
            ranks = range(1, len(one.classes) + 1)
            columns = [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
            yield _row(["path", "label", "confidence", *_extra(one), *columns])
        pairs = zip(one.classes, map(_short, one.probabilities), strict=True)
        extra = [
            _short(x) if isinstance(x, float) else ";".join(map(str, x))
            for x in _extra(one).values()
        ]
        yield _row([one.path, one.label, _short(one.confidence), *extra, *chain(*pairs)])


def _extra(one: Prediction) -> dict[str, float | tuple[str | float, ...]]:
    """Column -> what was asked for besides the label."""
    found: dict[str, float | tuple[str | float, ...]] = {}
    if one.p_value is not None:
        found["p_value"] = float(_short(one.p_value))
    if one.prediction_set is not None:
        found["set"] = one.prediction_set
    if one.label_probabilities is not None:
        found["label_probabilities"] = tuple(float(_short(p)) for p in one.label_probabilities)
    return found


def _row(cells: Sequence[str]) -> str:
    line = io.StringIO()
    # With its own line end, for a "\r" in a cell is quoted only where rows end in one.
    csv.writer(line).writerow(map(spreadsheet_safe, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def plain(one: Prediction | Unreadable) -> dict[str, object]:
    """The object that a JSON line holds."""
    if isinstance(one, Unreadable):
        return {"path": one.path, "error": one.reason}
    return {
        "path": one.path,
        "label": one.label,
        "confidence": float(_short(one.confidence)),
        **_extra(one),
        "classes": one.classes,
        "probabilities": [float(_short(p)) for p in one.probabilities],
    }


def _jsonl(results: Results) -> Iterator[str]:
    for one in results:
        yield json.dumps(plain(one)) + "\n"


def _table(results: Results, width: int | None) -> Iterator[str]:
    readable = (one for one in results if isinstance(one, Prediction))
    begin = list(islice(readable, BLOCK))
    if not begin:
        return
    in_sets = begin[0].prediction_set is not None
    first, read = list(map(_cells, begin)), map(_cells, readable)
    header = ("image", "label", "%", "set" if in_sets else "next" if first[0][3] else "")
    if begin[0].labels is not None:
        header = ("image", "label", "%", "most probable")
    widths = _widths([header, *first], width)
    for row in chain([header], first, read):
        yield _line(row, widths, cut=width is not None)


_Cells = tuple[str, str, str, str]


def _cells(one: Prediction) -> _Cells:
    """Path, label, confidence, and the set, or the classes after the first."""
    label = one.label if one.known else f"{one.label} ({one.classes[0]})"
    percent = _percent(one.confidence)
    pairs = list(zip(one.classes, one.probabilities, strict=True))
    if one.label_probabilities is not None:
        percent = ";".join(map(_percent, one.label_probabilities))
    else:
        pairs = pairs[1:]
    after = ", ".join(f"{name} {_percent(p)}" for name, p in pairs)
    if one.prediction_set is not None:
        after = ", ".join(one.prediction_set)
    return printable(one.path), printable(label), percent, printable(after)


def _widths(rows: Sequence[_Cells], width: int | None) -> tuple[int, int, int, int]:
    """Of the columns; in a narrow terminal paths and labels leave half of it to the rest."""
    path, label, percent, after = column_widths(rows)
    if width is not None:
        free = max(width - len("100.0") - 6, 24)  # three gaps of two
        label = min(label, max(free // 4, 8))
        path = min(path, max(free // 2, free - label - after, 8))
        after = max(free - label - path, 0)
    return path, label, max(percent, len("100.0")), after


def _line(row: _Cells, widths: tuple[int, int, int, int], *, cut: bool) -> str:
    path, label, percent, after = row
    if cut:
        path = keep_end(path, widths[0])
        label, after = keep_start(label, widths[1]), keep_start(after, widths[3])
    return aligned((path, label, percent, after), widths, right=(2,)) + "\n"


def keep_start(text: str, width: int) -> str:
    """The text in at most so many columns, its end gone where it is longer."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width else ""


def keep_end(text: str, width: int) -> str:
    """The text in at most so many columns, its start gone where it is longer."""
    if cell_len(text) <= width:
        return text
    kept = text[-width:]
    while cell_len(kept) >= width:
        kept = kept[1:]
    return f"…{kept}"


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f}"


def _short(probability: float) -> str:
    """Six digits: more would be of the machine, not of the image."""
    return f"{probability:.6g}"
