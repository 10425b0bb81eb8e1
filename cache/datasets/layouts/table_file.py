"""A table's bytes into rows of text: encoding, separator and form are seen from the file itself."""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from cache.errors import UserError, printable
from cache.files.json_text import parse_json

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
LABEL_SEPARATOR = ";"  # between the labels of one image
_SEPARATORS = ",;\t|"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_rows(file: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str], tuple[str, ...]]:
    """Line number and fields of every row, the columns, and what was found out about the file.

    Raises:
        UserError: It cannot be read, or is no table.
    """
    kind = file.suffix.lower()
    if kind not in ENDINGS:
        raise UserError(f"{file} must end in .csv, .tsv or .jsonl, got {kind or 'no ending'!r}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the table {file}: {error.strerror}") from error
    text, notes = _text(file, content)
    try:
        rows = list(_delimited(text) if kind in (".csv", ".tsv") else _json_lines(file, text))
    except csv.Error as error:
        raise UserError(f"{file} is not a table of comma-separated values: {error}") from error
    return rows, list(dict.fromkeys(name for _, row in rows for name in row)), notes


def _text(file: Path, content: bytes) -> tuple[str, tuple[str, ...]]:
    """The text, by its byte-order mark; without one UTF-8, and Latin-1 if it is no UTF-8."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:4]:
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    try:
        return content.decode(encoding), ()
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or b"\0" in content:
            raise UserError(f"{file} is not a text table in {encoding}: {error}") from error
    return content.decode("latin-1"), (f"{file.name} is no UTF-8; it was read as Latin-1",)


def _delimited(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    for row in table:
        yield table.line_num, _texts({key: row[key] for key in row if key is not None})


def _json_lines(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _texts(_object(line, f"{file}, line {number}"))


def _object(line: str, place: str) -> dict[str, object]:
    value = parse_json(line, place)
    if not isinstance(value, dict):
        got = printable(line[:40])
        raise UserError(
            f'{place}: expected an object like {{"path": ..., "label": ...}}, got {got}'
        )
    plain = {key: _joined(x) if isinstance(x, list) else x for key, x in value.items()}
    return {key: x for key, x in plain.items() if not isinstance(x, dict | list)}


def _joined(values: list[object]) -> object:
    """A list of labels as a cell of a table has them; another list as it is."""
    if not all(isinstance(x, str | int) for x in values):
        return values
    return LABEL_SEPARATOR.join(map(str, values))


def _texts(row: dict[str, object]) -> dict[str, str]:
    return {str(k).strip(): "" if v is None else str(v).strip() for k, v in row.items()}
