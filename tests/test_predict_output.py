import csv
import io
import json
import os
from collections.abc import Iterator

import pytest
from rich.cells import cell_len

from cache.errors import UserError, printable
from fewshot.adapters.image_results import (
    Prediction,
    PredictionCounts,
    PredictionForm,
    Unreadable,
    distinct,
)
from fewshot.adapters.output import BLOCK, encodable, keep_end, keep_start, lines

CAT = Prediction("a.jpg", ("cat", "dog", "owl"), (0.75, 0.2, 0.05))
UNSURE = Prediction("photos/b.jpg", ("dog", "cat", "owl"), (0.41, 0.39, 0.2), 0.5)
HARD = (
    "comma, and\ttab.jpg",
    'quote".jpg',
    "'single'.jpg",
    "line\nbreak.jpg",
    "return\r.jpg",
    "both\r\n.jpg",
    "фото/äpfel 🍎.jpg",
    " spaces ",
    "=1+1.jpg",
    "back\\slash.jpg",
)


def written(form: str, *results: Prediction | Unreadable, width: int | None = None) -> str:
    return "".join(lines(results, form, width))


def named(path: str) -> Prediction:
    return Prediction(path, ("cat, wild", "dog"), (0.9, 0.1))


def test_a_label_is_the_best_class_or_unknown_below_the_confidence_asked_for() -> None:
    assert (CAT.label, CAT.confidence) == ("cat", 0.75)
    assert (UNSURE.label, UNSURE.confidence, UNSURE.known) == ("unknown", 0.41, False)
    exactly = Prediction("a", ("cat",), (0.5,), 0.5)
    assert exactly.label == "cat"


def test_classes_of_one_name_are_told_apart_by_their_ids() -> None:
    assert distinct(("crane", "owl", "crane")) == ("crane (class 0)", "owl", "crane (class 2)")
    assert distinct(("a", "b")) == ("a", "b")


def test_a_form_that_cannot_be_is_refused() -> None:
    PredictionForm(1, 0.0)
    PredictionForm(9, 1.0)
    with pytest.raises(UserError, match=r"^top must be at least 1, .*; got 0$"):
        PredictionForm(0, 0.5)
    for confidence in (-0.1, 80.0, float("nan")):
        with pytest.raises(UserError, match=rf"must be a probability, 0\.\.1; got {confidence:g}$"):
            PredictionForm(5, confidence)
    with pytest.raises(UserError, match=r"unknown format 'cvs'; did you mean 'csv'"):
        written("cvs")


def test_counts_are_told_in_words() -> None:
    assert str(PredictionCounts(1, 0, 0)) == "1 image classified"
    assert str(PredictionCounts(1200, 3, 2)) == (
        "1,200 images classified, 3 of them unknown, 2 unreadable and skipped"
    )


def test_csv_has_a_header_and_a_row_for_each_image_that_could_be_read() -> None:
    text = written("csv", Unreadable("x.jpg", "broken"), CAT, UNSURE)
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert ",".join(header) == (
        "path,label,confidence,class_1,probability_1,class_2,probability_2,class_3,probability_3"
    )
    assert rows == [
        ["a.jpg", "cat", "0.75", "cat", "0.75", "dog", "0.2", "owl", "0.05"],
        ["photos/b.jpg", "unknown", "0.41", "dog", "0.41", "cat", "0.39", "owl", "0.2"],
    ]


def test_csv_brings_any_path_back_and_none_is_a_formula() -> None:
    text = written("csv", *map(named, HARD))
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    assert "=1+1.jpg" in HARD
    assert [row[0] for row in rows] == ["'=1+1.jpg" if p == "=1+1.jpg" else p for p in HARD]
    assert {row[3] for row in rows} == {"cat, wild"}
    assert "\r\n" not in text.replace('both\r\n.jpg"', "")


def test_csv_of_nothing_is_nothing() -> None:
    assert written("csv", Unreadable("x.jpg", "broken")) == ""


def test_json_lines_have_an_object_for_every_image() -> None:
    text = written("jsonl", Unreadable("x.jpg", "broken"), UNSURE)
    assert [json.loads(line) for line in text.splitlines()] == [
        {"path": "x.jpg", "error": "broken"},
        {
            "path": "photos/b.jpg",
            "label": "unknown",
            "confidence": 0.41,
            "classes": ["dog", "cat", "owl"],
            "probabilities": [0.41, 0.39, 0.2],
        },
    ]


def test_json_lines_bring_any_path_back_even_one_that_is_not_utf8() -> None:
    paths = [*HARD, os.fsdecode(b"caf\xe9.jpg")]
    text = "".join(lines([named(path) for path in paths], "jsonl"))
    assert text.isascii()
    objects = [json.loads(line) for line in text.splitlines()]
    assert [one["path"] for one in objects] == paths
    assert os.fsencode(objects[-1]["path"]) == b"caf\xe9.jpg"


def test_probabilities_keep_six_digits_also_small_ones() -> None:
    sure = Prediction("a", ("cat", "dog"), (1 - 1.23456789e-9, 1.23456789e-9))
    [_, row] = csv.reader(io.StringIO(written("csv", sure)))
    assert row[2:] == ["1", "cat", "1", "dog", "1.23457e-09"]
    assert json.loads(written("jsonl", sure))["probabilities"] == [1.0, 1.23457e-9]


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", None])
def test_no_path_fails_in_any_encoding(form: str, encoding: str | None) -> None:
    results = [named(path) for path in (*HARD, os.fsdecode(b"caf\xe9.jpg"))]
    for line in lines(results, form):
        encodable(line, encoding).encode(encoding or "utf-8")


def test_what_an_encoding_has_is_left_alone() -> None:
    assert encodable("äpfel \udce9 🍎", "utf-8") == r"äpfel \udce9 🍎"
    assert encodable("äpfel 🍎", "latin-1") == r"äpfel \U0001f34e"


def test_a_table_has_aligned_columns_and_percent() -> None:
    assert written("table", CAT, Unreadable("x.jpg", "broken"), UNSURE).splitlines() == [
        "image         label              %  next",
        "a.jpg         cat             75.0  dog 20.0, owl 5.0",
        "photos/b.jpg  unknown (dog)   41.0  cat 39.0, owl 20.0",
    ]


def test_a_table_of_one_class_each_has_no_further_column() -> None:
    one = Prediction("a.jpg", ("cat",), (1.0,))
    assert written("table", one) == "image  label      %\na.jpg  cat    100.0\n"


def test_wide_characters_are_aligned_as_a_terminal_shows_them() -> None:
    rows = written("table", named("写真.jpg"), named("photo.jpg")).splitlines()
    starts = {cell_len(row[: row.index("cat")]) for row in rows[1:]}
    assert starts == {len("photo.jpg") + 2}


def test_a_table_keeps_to_the_terminal_and_paths_keep_their_end() -> None:
    long = Prediction(f"{'deep/' * 40}写真.jpg", ("a name of many words " * 3, "dog"), (0.6, 0.4))
    crowd = Prediction("b.jpg", tuple(f"class {i}" for i in range(30)), (1 / 30,) * 30)
    for width in (40, 60, 80, 100, 133):
        rows = written("table", long, CAT, crowd, width=width).splitlines()
        assert all(cell_len(row) <= width for row in rows)
        assert rows[1].startswith("…")
        assert "写真.jpg  a name" in rows[1]
        assert rows[2].startswith("a.jpg ")
        assert rows[3].endswith("…")
    assert written("table", CAT, UNSURE, width=80) == written("table", CAT, UNSURE)


def test_a_path_longer_than_those_of_the_first_block_is_cut_only_in_a_terminal() -> None:
    short = [named("a.jpg")] * BLOCK
    long = named("much/longer/than/the/others/b.jpg")
    assert "much/longer/than/the/others/b.jpg  cat" in written("table", *short, long)
    *_, last = written("table", *short, long, width=80).splitlines()
    assert last.startswith("….jpg  cat, wild")


def test_rows_are_there_before_all_images_are() -> None:
    taken = 0

    def results() -> Iterator[Prediction]:
        nonlocal taken
        for _ in range(10 * BLOCK):
            taken += 1
            yield CAT

    rows = lines(results(), "table")
    assert next(rows).startswith("image")
    assert taken == BLOCK
    for form in ("csv", "jsonl"):
        taken = 0
        next(lines(results(), form))
        assert taken == 1


def test_a_name_cannot_move_the_cursor_or_make_a_line() -> None:
    assert printable("a\nb\r\x1b[2J\udce9é🍎") == r"a\nb\r\x1b[2J\udce9é🍎"
    rows = written("table", named("x\n\x1b[31m.jpg")).splitlines()
    assert len(rows) == 2
    assert rows[1].startswith(r"x\n\x1b[31m.jpg  cat, wild")


def test_texts_are_cut_at_either_end() -> None:
    assert (keep_end("abcdef", 4), keep_start("abcdef", 4)) == ("…def", "abc…")
    assert (keep_end("abcd", 4), keep_start("abcd", 4)) == ("abcd", "abcd")
    assert (keep_end("写真写真", 6), keep_start("写真写真", 6)) == ("…写真", "写真…")
    assert keep_start("abc", 0) == ""


def test_an_image_is_unknown_by_either_test_and_its_p_value_and_set_are_told() -> None:
    foreign = Prediction("a.jpg", ("cat", "dog"), (0.9, 0.1), 0.5, 0.05, ("cat", "dog"))
    familiar = Prediction("b.jpg", ("cat", "dog"), (0.9, 0.1), 0.5, 0.0501, ("cat",))
    unsure = Prediction("c.jpg", ("cat", "dog"), (0.4, 0.3), 0.5, 0.9, ("cat",))
    assert [one.label for one in (foreign, familiar, unsure)] == ["unknown", "cat", "unknown"]
    header, row, *_ = csv.reader(io.StringIO(written("csv", foreign, familiar)))
    assert header[:5] == ["path", "label", "confidence", "p_value", "set"]
    assert row[:5] == ["a.jpg", "unknown", "0.9", "0.05", "cat;dog"]
    values = json.loads(written("jsonl", foreign))
    assert (values["p_value"], values["set"]) == (0.05, ["cat", "dog"])
    lines_of_table = written("table", foreign, familiar).splitlines()
    assert lines_of_table[0].split() == ["image", "label", "%", "set"]
    assert lines_of_table[1].split() == ["a.jpg", "unknown", "(cat)", "90.0", "cat,", "dog"]
    assert "p_value" not in written("csv", CAT)
    assert "set" not in json.loads(written("jsonl", CAT))
