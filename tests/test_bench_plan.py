from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cache.errors import UserError
from fewshot.bench.attempt import Attempt
from fewshot.bench.combination import Cell
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.methods import METHODS
from fewshot.results.log import Result
from tests.small_stores import NAMES, write_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two datasets, the second without val and with views and two prompt sets."""
    write_store(tmp_path, "one")
    write_store(
        tmp_path, "two", seed=1, splits=("train", "test"), text=("templates", "cupl"), n_views=2
    )
    return tmp_path


def cells(root: Path, **asked: Any) -> list[Cell]:
    return plan(Bench(store=root, **asked)).cells


def refusal(root: Path, **asked: Any) -> str:
    with pytest.raises(UserError) as error:
        cells(root, **asked)
    return str(error.value)


def test_cells_are_all_combinations(root: Path) -> None:
    made = cells(root, methods=("gda", "ridge"), shots=(1, 2), seeds=(1, 2, 3))
    combinations = [(c.run.method, c.run.dataset, c.run.shots, c.run.seed) for c in made]
    assert len(combinations) == len(set(combinations)) == 2 * 2 * 2 * 3


def test_seeds_are_run_one_after_the_other_and_few_shots_first(root: Path) -> None:
    made = cells(root, methods=("gda",), datasets=("one",), shots=(1, 4), seeds=(2, 1))
    assert [(c.run.seed, c.run.shots) for c in made] == [(2, 1), (2, 4), (1, 1), (1, 4)]


def test_what_learns_from_no_labels_is_run_once_per_dataset(root: Path) -> None:
    made = cells(root, methods=("zero-shot", "gda"), shots=(0, 1, 2), seeds=(1, 2))
    assert Counter(c.run.method for c in made) == {"zero-shot": 2, "gda": 2 * 2 * 2}
    assert {c.run.shots for c in made if c.run.method == "zero-shot"} == {0}


def test_what_learns_from_labels_or_text_takes_no_shots_as_well(root: Path) -> None:
    name = next(n for n, m in METHODS.items() if m.learns_from == "labels or text")
    made = cells(root, methods=(name,), datasets=("one",), shots=(0, 2), seeds=(1, 2))
    assert [(c.run.shots, c.run.seed) for c in made] == [(0, 0), (2, 1), (2, 2)]


def test_tuning_is_settled_in_advance(root: Path) -> None:
    def tunes(**asked: Any) -> list[str]:
        made = cells(root, datasets=("one",), shots=(1, 4), seeds=(1,), **asked)
        return [c.run.tune for c in made]

    assert tunes(methods=("gda",)) == ["none", "cv"]
    assert tunes(methods=("gda",), tune="cv") == ["none", "cv"]
    assert tunes(methods=("gda",), tune="none") == ["none", "none"]
    assert tunes(methods=("gda",), tune="val") == ["val", "val"]
    assert tunes(methods=("gda",), settings={"alpha": ("1",)}) == ["none", "none"]
    assert tunes(methods=("nearest-mean",), tune="val") == ["none", "none"]
    # Four shots of the largest class leave one of the smallest.
    assert tunes(methods=("gda",), tune="cv", imbalance="step:4") == ["none", "none"]


def fixed(made: list[Cell]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(c.run.method, c.run.fixed) for c in made]


def test_a_sweep_runs_every_combination_of_the_settings_a_method_has(root: Path) -> None:
    once: dict[str, Any] = {"datasets": ("one",), "shots": (2,), "seeds": (1,)}
    settings = {"alpha": ("1", "2"), "shrinkage": ("oas", "0.5"), "ridge.penalty": ("3",)}
    made = cells(root, methods=("gda", "ridge", "nearest-mean"), settings=settings, **once)
    assert fixed(made) == [
        ("gda", {"alpha": 1.0, "shrinkage": "oas"}),
        ("gda", {"alpha": 1.0, "shrinkage": 0.5}),
        ("gda", {"alpha": 2.0, "shrinkage": "oas"}),
        ("gda", {"alpha": 2.0, "shrinkage": 0.5}),
        ("ridge", {"penalty": 3.0}),
        ("nearest-mean", {}),
    ]


def test_a_setting_of_one_method_comes_before_that_of_all(root: Path) -> None:
    once: dict[str, Any] = {"datasets": ("one",), "shots": (2,), "seeds": (1,)}
    settings = {"gda.logit_scale": ("10",), "logit_scale": ("20", "20.0")}
    made = cells(root, methods=("gda", "ridge"), settings=settings, **once)
    assert fixed(made) == [("gda", {"logit_scale": 10.0}), ("ridge", {"logit_scale": 20.0})]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"methods": ("gdaa",)}, "unknown method 'gdaa'; did you mean 'gda'"),
    ({"datasets": ("onee",)}, "unknown dataset 'onee'; did you mean 'one'"),
    ({"datasets": ("dtd",)}, "make it with: fewshot extract --dataset dtd"),
    ({"models": ("none",)}, "no such store"),
    ({"methods": ("gda",), "settings": {"penalty": ("1",)}}, "unknown setting 'penalty'"),
    ({"methods": ("gda",), "settings": {"ridge.penalty": ("1",)}}, "known: gda"),
    ({"methods": ("gda",), "settings": {"gda.penalty": ("1",)}}, "unknown setting of gda"),
    ({"methods": ("gda",), "settings": {"alpha": ("1", "high")}}, "alpha must be a number"),
    ({"methods": ("gda",), "settings": {"alpha": ("-1",)}}, "alpha must be 0 or more"),
    ({"methods": ("gda",), "shots": (0,)}, "nothing to run: methods that learn from labels want"),
    ({"protocol": "base-to-new", "methods": ("ridge",)}, "ridge knows no classes but those"),
    ({"imbalance": "step:2", "methods": ("zero-shot",)}, "zero-shot learns from no labels"),
    ({"datasets": ("two",), "methods": ("gda",), "tune": "val"}, "two has no val split; name"),
    ({"datasets": ("one",), "methods": ("gda",), "prompts": ("cupl",)}, "unknown prompt set of"),
    (
        {"protocol": "cross-dataset", "source": "one", "datasets": ("one",), "methods": ("gda",)},
        "one is the source and so no target",
    ),
    (
        {"protocol": "cross-dataset", "source": "one", "datasets": ("two",), "methods": ("gda",)},
        "two has no classes but those of one, so it is not for cross-dataset",
    ),
]


@pytest.mark.parametrize(("asked", "message"), BAD)
def test_what_cannot_be_is_refused_where_it_was_named(
    asked: dict[str, Any], message: str, root: Path
) -> None:
    assert message in refusal(root, **asked)


def test_no_stores_at_all_is_refused(tmp_path: Path) -> None:
    assert "no such store under" in refusal(tmp_path / "nowhere")
    assert "no such store under" in refusal(tmp_path, datasets=("mine",))


def test_what_cannot_be_is_left_out_where_all_were_asked_for(root: Path) -> None:
    made = plan(Bench(store=root, methods=("gda", "zero-shot"), tune="val", shots=(2,), seeds=(1,)))
    assert [(c.run.method, c.run.dataset) for c in made.cells] == [
        ("gda", "one"),
        ("zero-shot", "one"),
        ("zero-shot", "two"),
    ]
    assert made.left_out == ["two has no val split"]
    made = plan(Bench(store=root, protocol="base-to-new", shots=(2,), seeds=(1,)))
    assert {"gda", "zero-shot"} <= {c.run.method for c in made.cells}
    assert any(why.startswith("ridge knows no classes") for why in made.left_out)


def test_test_images_alone_without_text_are_no_dataset(root: Path) -> None:
    write_store(root, "unlabeled", splits=("test",), text=())
    made = plan(Bench(store=root, methods=("zero-shot",)))
    assert {c.run.dataset for c in made.cells} == {"one", "two"}
    assert made.left_out == ["unlabeled has neither train images nor text to learn from"]
    write_store(root, "one", splits=("test",))
    assert [c.run.dataset for c in cells(root, methods=("zero-shot",), datasets=("one",))]


def test_a_damaged_store_is_left_out_of_all_and_refused_by_name(root: Path) -> None:
    path = root / "two" / "toy.h5"
    path.write_bytes(path.read_bytes()[:-100])
    made = plan(Bench(store=root, methods=("gda",)))
    assert {c.run.dataset for c in made.cells} == {"one"}
    assert "damaged or cut short" in " ".join(made.left_out)
    assert "damaged or cut short" in refusal(root, methods=("gda",), datasets=("two",))


def test_models_are_told_apart_and_can_be_chosen(root: Path) -> None:
    write_store(root, "one", "ViT-B-32/openai")
    once: dict[str, Any] = {"methods": ("gda",), "shots": (1,), "seeds": (1,)}
    found = {(c.run.dataset, c.run.model) for c in cells(root, **once)}
    assert found == {("one", "toy"), ("two", "toy"), ("one", "ViT-B-32/openai")}
    found = {(c.run.dataset, c.run.model) for c in cells(root, models=("toy",), **once)}
    assert found == {("one", "toy"), ("two", "toy")}
    [one] = cells(root / "one" / "toy.h5", **once)
    assert one.tested.path == root / "one" / "toy.h5"


def test_done_is_what_has_the_same_cell_of_the_same_store(root: Path) -> None:
    bench = Bench(store=root, methods=("gda",), datasets=("one",), shots=(1, 2), seeds=(1,))
    made = plan(bench)
    done = {made.cells[0].run: None}
    assert made.tasks(done) == [[made.cells[1]]]
    write_store(root, "one", seed=5)
    assert len(plan(bench).tasks(done)) == 2


def test_one_fit_serves_all_targets_that_are_not_done(root: Path) -> None:
    for name in ("v2", "drawn", "v2s"):
        write_store(root, name, names=NAMES[:3], seed=2)
    bench = Bench(
        store=root, methods=("gda",), shots=(1,), seeds=(1, 2), protocol="domain-generalization",
        source="one", datasets=("v2", "drawn", "v2s"),
    )  # fmt: skip
    made = plan(bench)
    [first, second] = made.tasks({made.cells[0].run: None})
    assert [c.run.dataset for c in second] == ["drawn", "v2", "v2s"]
    assert [c.run.dataset for c in first] == ["v2", "v2s"]


# What a plan says a result is going to be must be what it is; else it would never be done.
ASKED: list[dict[str, Any]] = [
    {"shots": (0, 2), "datasets": ("one",)},
    {"shots": (2,), "tune": "val", "datasets": ("one",)},
    {"shots": (2,), "prompts": ("cupl",), "datasets": ("two",)},
    {"shots": (2,), "protocol": "base-to-new", "datasets": ("one", "two")},
    {"shots": (4,), "imbalance": "long-tail:4"},
    {"shots": (4,), "imbalance": "step:2", "tune": "none"},
    {"shots": (4,), "imbalance": "natural", "datasets": ("two",)},
    {"shots": (2,), "protocol": "domain-generalization", "source": "one"},
    {"shots": (2,), "protocol": "cross-dataset", "source": "half"},
]
SETTINGS = {"gda.alpha": ("2",), "gda.shrinkage": ("oas",), "ridge.penalty": ("1",)}
SOME = ("zero-shot", "nearest-mean", "gda", "ridge")


@pytest.mark.parametrize("asked", ASKED)
def test_results_are_those_that_were_planned(asked: dict[str, Any], root: Path) -> None:
    write_store(root, "half", names=NAMES[:2], seed=3)
    unlabeled = {n for n, m in METHODS.items() if m.learns_from in ("images", "labels or text")}
    bench = Bench(store=root, seeds=(1,), settings=SETTINGS, **asked)
    made = [c for c in plan(bench).cells if c.run.method in {*SOME, *unlabeled}]
    assert made
    for cell in made:
        [outcome], _ = Attempt(bench.out, predictions=False)([cell])
        assert isinstance(outcome, Result), (cell, outcome)
        assert outcome.run == cell.run


def test_methods_that_need_images_of_every_class_are_left_out_where_one_has_none(
    root: Path,
) -> None:
    write_store(root, "one", without=2)
    asked: dict[str, Any] = {"datasets": ("one",), "imbalance": "natural", "seeds": (1,)}
    made = cells(root, **asked)
    assert {"gda", "stack"} <= {c.run.method for c in made}
    assert not {"ridge", "tip-adapter"} & {c.run.method for c in made}
    [gda] = [c for c in made if c.run.method == "gda"]
    [outcome], _ = Attempt(Path(), predictions=False)([gda])
    assert isinstance(outcome, Result), outcome
    assert (outcome.run, outcome.tune) == (gda.run, "cv")
    assert f"one has no train image of '{NAMES[2]}'" in refusal(root, methods=("ridge",), **asked)


def test_natural_imbalance_is_one_cell_whatever_the_shots(root: Path) -> None:
    asked: dict[str, Any] = {"methods": ("gda",), "datasets": ("one",), "seeds": (1,)}
    made = cells(root, shots=(2, 4), imbalance="natural", **asked)
    assert [c.run.shots for c in made] == [20]
