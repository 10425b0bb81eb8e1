import csv
import io

import pytest

from fewshot.results.groups import UNTUNED
from fewshot.results.summaries import accuracy_table, curves
from fewshot.tables import Number, Table, comma_separated, latex, markdown, markdown_text, text
from tests.toy_results import RESULT, result, zero_shot

TABLE = Table(
    "50 % of a_b",
    ("class", "images", "accuracy"),
    [("cat|dog & co", 10, Number(81.25, 1.5)), ("sea_lion", 7, Number(100 / 3)), ("über", 0, "")],
    ("A note on a_b.",),
)


def test_seeds_are_averaged_and_nothing_else_is() -> None:
    results = [result(seed=s, accuracy=a) for s, a in enumerate((0.5, 0.6, 0.7), start=1)]
    results += [result(tune="val", accuracy=0.9), result(model="other")]
    rows = curves(results)
    assert [(row.model, row.tune) for row in rows] == [
        ("tiny", "cv"),
        ("tiny", "val"),
        ("other", "cv"),
    ]
    [(shots, mean, half)] = next(iter(rows.values()))
    assert (shots, round(mean, 6)) == (4, 0.6)
    assert round(half, 4) == 0.2484  # 4.303 x 0.1 / sqrt(3)


def test_mean_per_class_accuracy_has_columns_where_it_is_what_is_published() -> None:
    birds = result(dataset="zsl_cub", accuracy=0.5, per_class_accuracy=0.25)
    header, row = accuracy_table([birds]).splitlines()[:2]
    assert header.split("  ")[-2:] == ["4 shots", "4 shots, per class"]
    assert row.split()[-2:] == ["50.0", "25.0"]
    assert "per class" not in accuracy_table([RESULT])
    halves = result(
        dataset="zsl_cub", setting="generalized", per_class_accuracy=0.25,
        accuracies={"seen": 0.7, "unseen": 0.3}, accuracy=0.42,
    )  # fmt: skip
    ends = [line.split()[-2:] for line in accuracy_table([halves]).splitlines()[1:4]]
    assert ends == [["seen", "70.0"], ["unseen", "30.0"], ["42.0", "25.0"]]


def test_a_table_says_where_nothing_was_tuned() -> None:
    one = result(shots=1, tune="none")
    assert accuracy_table([one, RESULT]).splitlines()[-1] == UNTUNED
    assert UNTUNED not in accuracy_table([RESULT])
    assert UNTUNED not in accuracy_table([one])


def test_one_shot_defaults_begin_the_row_of_cv() -> None:
    one = result(shots=1, tune="none", accuracy=0.25)
    assert [len(points) for points in curves([one, RESULT]).values()] == [2]
    assert [row.tune for row in curves([one])] == ["none"]
    untuned = result(tune="none")
    assert [row.tune for row in curves([untuned, RESULT])] == ["none", "cv"]


def test_the_table_has_a_column_per_number_of_shots_in_percent() -> None:
    results = [zero_shot(accuracy=0.4), result(shots=1, seed=2), RESULT, result(seed=2)]
    assert accuracy_table(results).splitlines() == [
        "dataset  model  method     tuned by  no shots  1 shot  4 shots",
        "dtd      tiny   zero-shot  none      40.0",
        "dtd      tiny   gda        cv                  50.0    50.0 ± 0.0",
    ]


def test_the_table_tells_settings_apart_where_there_are_several() -> None:
    target = result(dataset="imagenet_a", fitted_on="imagenet", setting="domain-generalization")
    lines = accuracy_table([result(imbalance="step:10", setting="imbalanced"), target]).splitlines()
    assert "imbalanced step:10" in lines[1]
    assert "domain-generalization imagenet" in lines[2]


def test_text_is_aligned_and_followed_by_its_notes() -> None:
    assert text(TABLE).splitlines() == [
        "class         images  accuracy",
        "cat|dog & co  10      81.2 ± 1.5",
        "sea_lion      7       33.3",
        "über          0",
        "A note on a_b.",
    ]


def test_markdown_escapes_bars_and_puts_numbers_to_the_right() -> None:
    head, rule, first, *_ = markdown(TABLE).splitlines()
    assert head == "| class | images | accuracy |"
    assert rule == "| :--- | ---: | ---: |"
    assert first == r"| cat\|dog &amp; co | 10 | 81.2 ± 1.5 |"


def test_latex_escapes_what_means_something_to_it() -> None:
    lines = latex(TABLE).splitlines()
    assert r"\caption{50 \% of a\_b}" in lines
    assert r"\begin{tabular}{lrr}" in lines
    assert r"cat|dog \& co & 10 & 81.2 $\pm$ 1.5 \\" in lines
    assert r"sea\_lion & 7 & 33.3 \\" in lines


def test_csv_keeps_all_digits_and_gives_intervals_their_own_column() -> None:
    head, *rows = csv.reader(io.StringIO(comma_separated(TABLE)))
    assert head == ["class", "images", "accuracy", "accuracy ±"]
    assert rows == [
        ["cat|dog & co", "10", "81.25", "1.5"],
        ["sea_lion", "7", str(100 / 3), ""],
        ["über", "0", "", ""],
    ]


def test_a_difference_has_its_sign_and_zero_is_not_negative() -> None:
    assert str(Number(0.25, signed=True, digits=2)) == "+0.25"
    assert str(Number(-0.04, signed=True)) == "+0.0"
    assert str(Number(-0.06, signed=True)) == "-0.1"


def test_parts_of_the_test_split_have_a_line_each() -> None:
    parts = {"base": 0.9, "new": 0.45}
    halves = [
        result(setting="base-to-new", accuracy=0.6, accuracies=parts, seed=seed) for seed in (1, 2)
    ]
    assert accuracy_table(halves).splitlines() == [
        "dataset  model  method  setting      tuned by  classes  4 shots",
        "dtd      tiny   gda     base-to-new  cv        base     90.0 ± 0.0",
        "dtd      tiny   gda     base-to-new  cv        new      45.0 ± 0.0",
        "dtd      tiny   gda     base-to-new  cv        H        60.0 ± 0.0",
    ]


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        ("sea_lion", r"sea\_lion"),
        ("a|b", r"a\|b"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("*x* `y` [z](u)", r"\*x\* \`y\` \[z\](u)"),
        ("one\n## two", r"one \#\# two"),
        ("\x1b[31m\u202egpj", r"\\x1b\[31m\\u202egpj"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_special_characters_in_markdown_mean_themselves(plain: str, marked: str) -> None:
    assert markdown_text(plain) == marked


EVIL = "\x1b[31mred\u202egpj\n\x9b"


def test_no_name_moves_the_cursor_or_turns_the_text_around() -> None:
    table = Table("", ("name", EVIL), [(EVIL, 1)], (EVIL,))
    for form in (text, markdown, latex):
        drawn = form(table)
        assert all(character.isprintable() or character == "\n" for character in drawn)
        assert "red" in drawn
    assert len(text(table).splitlines()) == 3


def test_columns_are_as_wide_as_a_terminal_shows_them() -> None:
    lines = text(Table("", ("name", "n"), [("猫", 1), ("cat", 2)])).splitlines()
    assert [line.rstrip("n12 ") for line in lines] == ["name", "猫", "cat"]
    assert lines[1] == "猫    1"
    assert lines[2] == "cat   2"


def test_no_text_in_csv_is_taken_for_a_formula_and_numbers_stay() -> None:
    names = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a=1", "")
    rows = [(name, Number(-0.5)) for name in names]
    read = list(csv.reader(io.StringIO(comma_separated(Table("", ("=x", "n"), rows)))))
    assert [row[0] for row in read[1:]] == [*(f"'{name}" for name in names[:5]), "a=1", ""]
    assert {row[1] for row in read[1:]} == {"-0.5"}
