import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import GDA, NearestMean, ZeroShot, base_to_new, configure, evaluate, fit, transfer
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.run import Run
from fewshot.sampling import Sample
from tests.small_stores import NAMES, write_store
from tests.toy_results import RESULT

SAMPLE = Sample(2, 7, np.arange(8))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(write_store(tmp_path, "one"))


EXCLUDED: list[tuple[dict[str, Any], str]] = [
    ({"sample": SAMPLE, "imbalance": "step:2"}, "a sample and imbalance step:2 exclude"),
    ({"sample": SAMPLE, "imbalance": "natural"}, "a sample and imbalance natural exclude"),
    ({"sample": SAMPLE, "setting": "base-to-new"}, "a sample and base-to-new exclude"),
    ({"setting": "base-to-new", "imbalance": "step:2"}, "imbalance step:2 and base-to-new exclude"),
    ({"setting": "cross-dataset", "shots": "all"}, "imbalance natural and cross-dataset exclude"),
    ({"shots": "all", "imbalance": "step:2"}, "takes every train image"),
    ({"shots": "all", "sample": SAMPLE}, "the sample has its own shots, 2; got shots all as well"),
    ({"shots": 4, "sample": SAMPLE}, "the sample has its own shots, 2; got shots 4 as well"),
    ({"shots": -1}, "shots must be a whole number, 0 or more, or all; got -1"),
    ({"shots": 2.0}, r"shots must be a whole number, 0 or more, or all; got 2\.0"),
    ({"shots": True}, "shots must be a whole number, 0 or more, or all; got True"),
    ({"shots": "some"}, "shots must be a whole number, 0 or more, or all; got 'some'"),
    ({"sample": [1, 2]}, r"expected a sample as `draw` gives it; got \[1, 2\]"),
    ({"seed": "1"}, "seed must be a whole number of 64 bits; got '1'"),
    ({"seed": 2**63}, "seed must be a whole number of 64 bits"),
    ({"tune": "test"}, "unknown tuning protocol 'test'"),
    ({"setting": "one-shot"}, "unknown setting 'one-shot'; did you mean 'few-shot'"),
    ({"imbalance": "steep"}, "imbalance must be long-tail:R or step:R"),
]


@pytest.mark.parametrize(("asked", "message"), EXCLUDED)
def test_what_cannot_be_asked_together_is_refused_in_python_too(
    asked: dict[str, Any], message: str, store: FeatureStore
) -> None:
    with pytest.raises(UserError, match=message):
        Protocol(**asked)
    with pytest.raises(UserError, match=message):
        evaluate(store, "gda", **asked)


def test_the_keywords_are_the_fields_of_a_protocol() -> None:
    keywords, attributes = get_type_hints(Asked), get_type_hints(Protocol)
    assert list(keywords) == list(attributes)
    names = {name for name in attributes if keywords[name] != attributes[name]}
    assert names == {"fixed"}  # which may also be names


def test_a_protocol_and_keywords_and_a_name_and_a_method_are_the_same(store: FeatureStore) -> None:
    method = GDA(logit_scale=store.logit_scale)
    asked = Protocol(shots=4, seed=2, tune="none", fixed={"alpha": 3.0})
    results = [
        evaluate(store, "gda", asked),
        evaluate(store, method, asked),
        evaluate(store, "gda", shots=4, seed=2, tune="none", fixed={"alpha": 3.0}),
        evaluate(store, "gda", shots=4, seed=2, tune="none", fixed={"alpha": "3"}),
        evaluate(store, replace(method, alpha=3.0), shots=4, seed=2, tune="none", fixed=["alpha"]),
        evaluate(store, "gda", Protocol(shots=1, seed=2, tune="none"), shots=4, fixed={"alpha": 3}),
    ]
    assert {r.accuracy for r in results} == {results[0].accuracy}
    assert all(r.run == results[0].run for r in results)
    assert results[0].fixed == {"alpha": 3.0}
    assert results[0].hyperparameters["alpha"] == 3.0


@pytest.mark.parametrize("method", [NearestMean, None])
def test_what_is_no_method_is_refused(method: Any, store: FeatureStore) -> None:
    with pytest.raises(UserError, match=r"expected a method such as GDA\(\), or a name; got "):
        evaluate(store, method, shots=2)


def test_settings_that_leave_no_solution_are_refused_in_a_line(store: FeatureStore) -> None:
    with pytest.raises(UserError, match=r"gda finds no solution .*; move the settings toward"):
        evaluate(store, "gda", shots=2, fixed={"shrinkage": 1e-300}, tune="none")


@pytest.mark.parametrize("scale", ["nan", "inf", "-1", "0", 0.0])
def test_a_logit_scale_is_a_number_above_zero(scale: Any) -> None:
    with pytest.raises(UserError, match="logit_scale must be "):
        configure("taskres", {"logit_scale": scale})


def test_a_probe_without_any_penalty_still_ends(store: FeatureStore) -> None:
    fitted = fit(store, "linear-probe", shots=2, fixed={"C": 1e30}, tune="none")
    assert fitted.support is not None
    predicted = fitted.classifier.logits(fitted.support.features).argmax(dim=1)
    assert predicted.equal(fitted.support.labels)


def test_shots_and_seed_may_be_numbers_of_numpy() -> None:
    shots: Any = np.int64(4)
    assert Protocol(shots=shots, seed=shots) == Protocol(shots=4, seed=4)


@pytest.mark.parametrize("fixed", [["alfa"], {"alfa": 1.0}])
def test_a_setting_that_the_method_lacks_is_refused(fixed: Any, store: FeatureStore) -> None:
    with pytest.raises(UserError, match="unknown setting of gda 'alfa'; did you mean 'alpha'"):
        evaluate(store, "gda", shots=2, fixed=fixed)


def test_all_shots_are_all_train_images_of_all_classes(store: FeatureStore) -> None:
    assert Protocol(shots="all") == Protocol(imbalance="natural") == Protocol(shots="all", seed=1)
    result = evaluate(store, "gda", shots="all")
    assert (result.n_support, result.shots, result.setting) == (80, 20, "imbalanced")
    assert result.imbalance == "natural"


def test_all_shots_ask_nothing_of_a_method_without_labels(store: FeatureStore) -> None:
    assert evaluate(store, ZeroShot(), shots="all").run == evaluate(store, ZeroShot()).run


def test_every_function_makes_the_run_before_it_fits(store: FeatureStore, tmp_path: Path) -> None:
    other = FeatureStore.open(write_store(tmp_path, "two", names=NAMES[:3]))
    planned = fit(store, "gda", shots=2).run
    assert evaluate(store, "gda", shots=2).run == planned
    assert fit_and_save(store, "gda", tmp_path / "a.safetensors", shots=2)[1] is not None
    assert replace(base_to_new(store, "gda", shots=2).run, setting="few-shot") == planned
    [moved] = transfer(store, [other], "gda", shots=2)
    assert moved.run == replace(
        planned, setting="domain-generalization", dataset="two", fingerprint=other.fingerprint
    )


def test_an_adapter_of_half_of_the_classes_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one classifier of all classes; got base-to-new"):
        fit_and_save(store, "gda", tmp_path / "a.safetensors", shots=2, setting="base-to-new")


def test_a_result_is_its_run_and_what_came_of_it() -> None:
    assert isinstance(RESULT, Run)
    assert type(RESULT.run) is Run
    assert RESULT.run == RESULT.run.run
    assert {field.name for field in fields(Run)} < {field.name for field in fields(Result)}


def test_runs_are_keys_whatever_is_fixed() -> None:
    found = {replace(RESULT.run, fixed={"alpha": alpha}): alpha for alpha in (1.0, 2.0)}
    assert found[replace(RESULT.run, fixed={"alpha": 2})] == 2.0


def test_a_row_is_a_run_without_its_shots_and_seed() -> None:
    rows = {replace(RESULT, shots=shots, seed=seed).row for shots in (1, 2) for seed in (1, 2)}
    assert len(rows) == 1
    assert replace(RESULT, dataset="ucf101").row not in rows


def test_on_no_dataset_in_particular_the_source_of_a_transfer_stays() -> None:
    moved = replace(RESULT.run, setting="cross-dataset", fitted_on="imagenet")
    assert moved.anywhere() == replace(moved, dataset="sun397").anywhere()
    assert moved.anywhere() != replace(moved, fitted_on="caltech101").anywhere()
    assert RESULT.run.anywhere() == replace(RESULT.run, dataset="a", fitted_on="a").anywhere()


def test_a_name_of_predictions_says_method_and_dataset_and_differs_for_whatever_differs() -> None:
    run = RESULT.run
    assert run.file_name.startswith("gda-dtd-")
    assert run.file_name.endswith(".npz")
    assert RESULT.file_name == run.file_name
    assert replace(RESULT, accuracy=0.1).file_name == run.file_name
    others = [replace(run, shots=8), replace(run, fixed={"alpha": 2.0}), replace(run, seed=2)]
    assert len({run.file_name, *(other.file_name for other in others)}) == 4


def test_a_label_says_what_a_person_would() -> None:
    assert RESULT.label == "gda dtd tiny 4 shots, seed 1"
    one = replace(RESULT, shots=1, fixed={"alpha": 2.0}, prompt_set="cupl")
    assert one.label == "gda alpha=2.0 dtd tiny prompts cupl 1 shot, seed 1"
    assert replace(RESULT, shots=0, method="zero-shot").label == "zero-shot dtd tiny"


def test_no_name_leads_predictions_out_of_their_folder(tmp_path: Path) -> None:
    path = write_store(tmp_path, "x/../../victim")
    result = evaluate(FeatureStore.open(path), "gda", shots=2, save=tmp_path / "said")
    assert result.dataset == "x/../../victim"
    assert result.predictions is not None
    assert Path(result.predictions).parent == tmp_path / "said"
    assert Path(result.predictions).is_file()


def test_the_command_is_quoted_and_says_what_was_typed(tmp_path: Path) -> None:
    odd = replace(RESULT.run, dataset="a b", fitted_on="a b", fixed={"alpha": 2.0}, tune="none")
    assert shlex.split(odd.command(Path("my stores"), Path("out; rm x"))) == [
        "fewshot", "fit", "gda", "--model", "tiny", "--dataset", "a b", "--shots", "4",
        "--seed", "1", "--tune", "none", "--set", "alpha=2.0", "--store", "my stores",
        "--results", "out; rm x/results.jsonl",
    ]  # fmt: skip


def test_the_command_of_a_trained_method_has_the_options_for_its_images() -> None:
    run = replace(RESULT.run, method="coop", fixed={"crop_scale": [0.5, 1.0], "flip": False})
    words = shlex.split(run.command(Path("s"), Path("o"), end_to_end=True))
    assert words[-8:-4] == ["--crop-scale", "0.5", "1.0", "--no-flip"]
    assert "--set" not in words
    published = replace(run, fixed={"sample": "val first"})
    assert "--official" in shlex.split(published.command(Path("s"), Path("o"), end_to_end=True))
