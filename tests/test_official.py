from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import UserError
from cache.store import FeatureStore
from cli import main
from fewshot import METHODS, Sample, draw, fit
from fewshot.evaluation import evaluate
from fewshot.method import Grid, Method, variants
from fewshot.methods.gda import GDA
from fewshot.protocol import Protocol
from fewshot.results.log import read
from fewshot.results.summaries import accuracy_table
from tests.small_stores import write_store

DATASET = {"proker": "sun397"}  # the one that its grid is known of
WITHOUT = {
    "nearest-mean",
    "ridge",
    "stack",
    "gda-em",
    "two-stage",
    "ueo",
    "text-probe",
    "cross-modal",
}
FOLLOWED = [name for name in METHODS if name not in WITHOUT]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(write_store(tmp_path, "ucf101", n_views=20))


def few_values(grid: Grid) -> dict[str, tuple[Any, ...]]:
    """About four values of each field, far enough apart to differ."""
    return {name: values[:: max(1, len(values) // 4)] for name, values in grid.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_names_settings_and_values_that_the_method_takes(name: str) -> None:
    method = METHODS[name]()
    if name in WITHOUT:
        with pytest.raises(UserError, match=r"no published recipe.*leave --official out"):
            method.published_recipe("ucf101")
        return
    recipe = method.published_recipe(DATASET.get(name, "ucf101"))
    assert {*recipe.settings, *recipe.grid} <= {field.name for field in fields(method)}
    configured = replace(method, **recipe.settings)
    for field, values in recipe.grid.items():
        for value in (values[0], values[-1]):
            replace(configured, **{field: value})
    assert bool(recipe.grid) == (recipe.tune != "none")


@pytest.mark.parametrize(
    "name", ["tip-adapter", "tip-adapter-f", "ape", "ape-t", "proker", "refiner"]
)
def test_a_dataset_that_the_paper_did_not_use_has_no_recipe(name: str) -> None:
    with pytest.raises(UserError, match="unknown dataset with a published recipe 'digits'"):
        METHODS[name]().published_recipe("digits")


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_search_finds_a_most_accurate_variant(name: str, store: FeatureStore) -> None:
    method = METHODS[name]()
    recipe = method.published_recipe(DATASET.get(name, "ucf101"))
    if name in ("zero-shot", "linear-probe") or not recipe.grid:
        pytest.skip("nothing is searched, or by bisection, which has tests of its own")
    settings = {**recipe.settings, "epochs": 2} if "epochs" in recipe.settings else recipe.settings
    if "logit_scale" in {field.name for field in fields(method)}:
        settings = {**settings, "logit_scale": 2.0}  # low, so that what is searched decides
    method = replace(method, **settings)
    given = fit(store, method, shots=4, tune="none")
    assert given.support is not None
    grid = few_values(recipe.grid)
    query = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(query) if method.unit_norm else query

    def says(variant: Method) -> torch.Tensor:
        assert given.support is not None
        return variant.fit(given.support, given.text).logits(features).argmax(dim=1)

    every = list(variants(method, grid))
    labels = says(every[-2])  # so that this one knows them all
    found = method.search_published(grid, given.support, given.text, features, labels)
    assert found in every
    assert torch.equal(says(found), labels)


def test_official_is_the_recipe_and_neither_defaults_nor_cross_validation(
    store: FeatureStore,
) -> None:
    result = evaluate(store, "gda", shots=4, tune="official")
    assert (result.tune, result.n_views, result.n_validation) == ("official", 20, 20)
    assert result.hyperparameters["alpha_unit"] == "published"
    assert result.hyperparameters["alpha"] in GDA().published_recipe("ucf101").grid["alpha"]
    usual = evaluate(store, "gda", shots=4)
    assert usual.row != result.row  # so no table averages the two
    assert "official" in accuracy_table([usual, result])


def test_a_recipe_without_views_learns_from_center_crops(store: FeatureStore) -> None:
    assert evaluate(store, "linear-probe", shots=2, tune="official").n_views == 1


def test_views_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    bare = FeatureStore.open(write_store(tmp_path, "ucf101"))
    with pytest.raises(UserError, match=r"gda's .* from 10 augmented views .* has 0; .*--views 10"):
        fit(bare, "gda", shots=4, tune="official")


def test_a_recipe_that_searches_needs_a_val_split_and_never_takes_the_test_split(
    tmp_path: Path,
) -> None:
    path = write_store(tmp_path, "ucf101", n_views=10, splits=("train", "test"))
    with pytest.raises(UserError, match="no val split for tuning by full-val"):
        fit(FeatureStore.open(path), "gda", shots=4, tune="official")


@pytest.mark.parametrize(
    "more",
    [
        {"fixed": {"alpha": 1.0}},
        {"views": False},
        {"blend": 0.5},
        {"shots": "all"},
        {"imbalance": "step:2"},
        {"setting": "base-to-new"},
    ],
)
def test_what_a_recipe_decides_itself_is_not_asked_for_as_well(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="an official recipe decides"):
        Protocol(**{"shots": 4, "tune": "official", **more})


def test_a_sample_of_published_rows_may_be_given(store: FeatureStore) -> None:
    sample: Sample = draw(store.labels("train"), store.classnames, shots=2, seed=3)
    assert evaluate(store, "gda", sample=sample, tune="official").shots == 2


def test_the_command_line_follows_a_recipe_and_prints_the_command_again(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "results.jsonl"
    there = ["--dataset", "ucf101", "--store", str(tmp_path), "--results", str(log)]
    assert main(["fit", "clap", *there, "--shots", "2", "--official"]) == 0
    [result] = read(log)
    assert result.tune == "official"
    assert "--official" in result.command(tmp_path, tmp_path)
    assert main(["fit", "gda", *there, "--official", "--tune", "cv"]) == 2
    assert "leave --tune out" in capsys.readouterr().err
