from pathlib import Path
from typing import Any

import pytest

from cache.errors import UserError
from fewshot.bench.config import ALL, Bench, configured, parse_settings

FILE = """
methods = ["gda", "ridge"]
datasets = "dtd, eurosat"
shots = [1, 4]
seeds = 7
tune = "val"
jobs = 2
out = "runs/x"
predictions = false

[set]
alpha = [0.1, 3]
shrinkage = "oas"
ridge.penalty = 1.0
"""


def written(folder: Path, content: str) -> Path:
    path = folder / "bench.toml"
    path.write_text(content)
    return path


def test_a_file_says_all_that_flags_say(tmp_path: Path) -> None:
    assert configured({}, written(tmp_path, FILE)) == Bench(
        methods=("gda", "ridge"),
        datasets=("dtd", "eurosat"),
        shots=(1, 4),
        seeds=(7,),
        tune="val",
        settings={"alpha": ("0.1", "3"), "shrinkage": ("oas",), "ridge.penalty": ("1.0",)},
        jobs=2,
        out=Path("runs/x"),
        predictions=False,
    )


def test_flags_come_before_the_file_and_settings_one_by_one(tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "shots": (16,),
        "tune": None,
        "predictions": True,
        "settings": parse_settings(["alpha=5", "margin=1,2"]),
    }
    asked = configured(flags, written(tmp_path, FILE))
    assert (asked.shots, asked.seeds, asked.tune, asked.predictions) == ((16,), (7,), "val", True)
    assert asked.settings["alpha"] == ("5",)
    assert asked.settings["margin"] == ("1", "2")
    assert asked.settings["shrinkage"] == ("oas",)


def test_without_either_everything_is_run_as_the_literature_does() -> None:
    asked = configured({"methods": None})
    assert (asked.methods, asked.datasets, asked.models) == (ALL, ALL, ALL)
    assert (asked.shots, asked.seeds) == ((1, 2, 4, 8, 16), (1, 2, 3))


@pytest.mark.parametrize(
    ("flags", "content"),
    [
        ({"known": "published"}, "datasets = ['office31_dslr', 'office31_webcam']"),
        ({"datasets": ("office31_dslr",)}, "known = 'published'"),
        ({}, "known = 'published'\ndatasets = 'office31_amazon'"),
        ({"known": "25"}, "known = 'cat, dog'"),
    ],
)
def test_known_classes_go_by_the_datasets_wherever_these_are_named(
    flags: dict[str, Any], content: str, tmp_path: Path
) -> None:
    asked = configured(flags, written(tmp_path, content))
    assert (asked.known, asked.protocol) == (25, "open-set")


def test_published_known_classes_of_all_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the datasets as well"):
        configured({"known": "published"}, written(tmp_path, "datasets = 'all'"))


def test_a_file_may_say_the_home_folder(tmp_path: Path) -> None:
    asked = configured({}, written(tmp_path, "out = '~/runs'\nstore = '~'"))
    assert (asked.out, asked.store) == (Path.home() / "runs", Path.home())


BAD_FILES = [
    ("metods = 'all'", "unknown key in .*'metods'; did you mean 'methods'"),
    ("shots = ['a']", "shots: expected whole numbers, got"),
    ("shots = [true]", "shots: expected whole numbers"),
    ("methods = [1]", "methods: expected a list of texts"),
    ("predictions = 'no'", "predictions: expected true or false, got 'no'"),
    ("jobs = 0", "jobs: expected a whole number of at least 1, got 0"),
    ("[set]\nalpha = []", "set.alpha: expected a value or a list of values"),
    ("[set]\ngda.alpha.x = 1", "set.gda.alpha: expected a value"),
    ("methods = ", "is not a valid TOML file"),
    (f"methods = {100_000 * '['}", "too deep a nesting"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_a_file_with_a_mistake_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        configured({}, written(tmp_path, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
        configured({}, tmp_path / "none.toml")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"methods": ()}, "methods must name one or more"),
    ({"shots": (4, -1)}, "shots must be a whole number, 0 or more, or all; got -1"),
    ({"jobs": 0}, "jobs must be 1 or more; got 0"),
    ({"protocol": "one-shot"}, "unknown protocol 'one-shot'; did you mean 'few-shot'"),
    ({"tune": "test"}, "unknown tuning protocol 'test'"),
    ({"protocol": "cross-dataset"}, "cross-dataset needs a source"),
    ({"source": "dtd"}, "few-shot takes no source"),
    (
        {"protocol": "base-to-new", "imbalance": "natural"},
        "imbalance natural and base-to-new exclude",
    ),
    ({"imbalance": "steep"}, "imbalance must be long-tail:R or step:R"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_will_not_do_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(values)


@pytest.mark.parametrize("pair", ["alpha", "alpha=", "=1", "alpha=,"])
def test_a_setting_without_name_or_value_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="--set must be"):
        parse_settings([pair])


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="alpha is given twice; list its values: alpha=A,B"):
        parse_settings(["alpha=1", "alpha=2"])
