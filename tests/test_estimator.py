import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.utils.estimator_checks import (
    check_classifiers_train,
    check_dict_unchanged,
    check_estimators_pickle,
    check_fit_idempotent,
    check_n_features_in_after_fitting,
    parametrize_with_checks,
)

import fewshot
from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import GDA, METHODS, Method, Ridge, Text, draw, fit
from fewshot.estimator import FewShotClassifier
from tests.small_stores import write_store
from tests.toy_rows import NAMED, NAMES, QUERY, RNG, TEXT, X, Y, named


def quick(name: str, **settings: Any) -> Method:
    """The method with little training."""
    method = METHODS[name](**settings)
    if "epochs" in {field.name for field in fields(method)}:
        return replace(method, epochs=3)
    return method


def without_text(name: str) -> FewShotClassifier:
    # Of the two features in some of the checks APE's default share of the channels leaves one.
    settings = {"channels": 1.0} if name == "ape" else {}
    return FewShotClassifier(quick(name, **settings), text="class-means")


def failing(estimator: FewShotClassifier) -> dict[str, str]:
    """Checks that contradict what the method is."""
    if isinstance(estimator.method, str) or not estimator.method.transductive:
        return {}
    return {
        "check_methods_subset_invariance": "what is classified together decides together",
        "check_methods_sample_order_invariance": "sums over all rows round by their order",
    }


# Nearly all of these checks are of the estimator and not of the method. Three methods stand for
# all: on features of unit norm, on features as they come, and on all queries at once.
@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [without_text(name) for name in ("gda", "linear-probe", "transclip")],
    expected_failed_checks=failing,
    xfail_strict=False,
)
def test_an_estimator_keeps_scikit_learns_conventions(
    estimator: FewShotClassifier, check: Callable[[FewShotClassifier], None]
) -> None:
    check(estimator)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "check",
    [
        check_classifiers_train,
        check_fit_idempotent,
        check_dict_unchanged,
        check_n_features_in_after_fitting,
        check_estimators_pickle,
    ],
)
def test_every_method_trains_repeats_and_pickles(
    name: str, check: Callable[[str, FewShotClassifier], None]
) -> None:
    check(name, without_text(name))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_what_the_method_makes_of_a_store(name: str, tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(tmp_path, "toy"))
    method = quick(name)
    rows = draw(store.labels("train"), store.classnames, shots=4, seed=1).train
    train, query = (store.features(s, unit=method.unit_norm) for s in ("train", "test"))
    labels = store.labels("train")
    if method.learns_from != "images":
        train, labels = train[rows], labels[rows]
    text = store.text(method.text_recipe)
    fitted = fit(store, method, shots=4, seed=1, tune="none")
    if method.unit_norm:  # then any norm is as good
        train *= RNG.uniform(0.1, 9, size=(len(train), 1)).astype(np.float32)
    stored = store.class_text()
    prompts, owners = map(torch.from_numpy, (stored.prompts, stored.labels))
    given = Text(torch.from_numpy(text), prompts, owners) if name == "cross-modal" else text
    estimator = FewShotClassifier(method, text=given).fit(train, labels)
    expected = fitted.classifier.logits(torch.from_numpy(query)).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(estimator.decision_function(query), expected, atol=1e-6 * scale)
    np.testing.assert_allclose(
        estimator.predict_proba(query), softmax(expected, axis=1), atol=3e-7 * max(scale, 1)
    )


def test_cv_chooses_what_it_chooses_on_a_store(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(tmp_path, "toy"))
    rows = draw(store.labels("train"), store.classnames, shots=4, seed=1).train
    estimator = FewShotClassifier("gda", text=store.text(), tune="cv")
    estimator.fit(store.features("train", rows), store.labels("train")[rows])
    assert estimator.method_ == fit(store, GDA(), shots=4, seed=1, tune="cv").method
    assert estimator.method_ != GDA()
    assert estimator.method == "gda"


def test_text_goes_by_the_sorted_labels() -> None:
    estimator = FewShotClassifier("zero-shot", text=NAMED).fit(X, Y)
    assert estimator.classes_.tolist() == ["ant", "bee", "cat"]
    cosines = QUERY @ TEXT.T / np.linalg.norm(TEXT, axis=1)
    np.testing.assert_array_equal(estimator.predict(QUERY), np.sort(NAMES)[cosines.argmax(axis=1)])


def test_raw_text_keeps_its_norm_and_other_text_does_not() -> None:
    def logits(name: str, factor: float) -> NDArray[np.float32]:
        return (
            FewShotClassifier(quick(name), text=named(factor * TEXT))
            .fit(X, Y)
            .decision_function(QUERY)
        )

    np.testing.assert_allclose(logits("gda", 9.0), logits("gda", 1.0), rtol=1e-5, atol=1e-4)
    assert np.abs(logits("zs-lp", 90.0) - logits("zs-lp", 9.0)).max() > 0.1


def test_a_text_with_prompts_is_more_than_its_features() -> None:
    features = torch.from_numpy(TEXT).float()
    features /= features.norm(dim=1, keepdim=True)
    names = tuple(NAMED)
    prompts = Text(features, -features, torch.arange(3), names=names)
    alone, both = (
        FewShotClassifier(quick("cross-modal"), text=text).fit(X, Y).decision_function(QUERY)
        for text in (Text(features, names=names), prompts)
    )
    assert np.abs(alone - both).max() > 0.01


def test_class_means_for_text_make_zero_shot_the_nearest_mean() -> None:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    means = np.stack([unit[name == Y].mean(axis=0) for name in np.sort(NAMES)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = QUERY @ means.T / np.linalg.norm(QUERY, axis=1, keepdims=True)
    estimator = FewShotClassifier("zero-shot", text="class-means").fit(X, Y)
    np.testing.assert_allclose(estimator.decision_function(QUERY), 100 * cosines, atol=1e-4)


def test_two_classes_have_one_logit() -> None:
    binary = Y != "bee"
    estimator = FewShotClassifier("gda", text={name: NAMED[name] for name in ("ant", "cat")}).fit(
        X[binary], Y[binary]
    )
    decision, proba = estimator.decision_function(QUERY), estimator.predict_proba(QUERY)
    assert decision.shape == (60,)
    np.testing.assert_allclose(proba[:, 1], expit(decision.astype(float)), atol=1e-6)
    np.testing.assert_array_equal(estimator.predict(QUERY), np.where(decision > 0, "cat", "ant"))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_rows_may_have_any_scale(scale: float) -> None:
    expected = FewShotClassifier("gda", text=NAMED).fit(X, Y).decision_function(QUERY)
    scaled = FewShotClassifier("gda", text=NAMED).fit(scale * X, Y)
    np.testing.assert_allclose(scaled.decision_function(scale * QUERY), expected, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_zeros_teaches_nothing_and_is_classified_all_the_same(name: str) -> None:
    estimator = FewShotClassifier(quick(name), text=NAMED)
    without = estimator.fit(X, Y).decision_function(QUERY)
    rows, labels = np.vstack([X[:1], np.zeros((1, 8)), X[1:]]), [Y[0], "cat", *Y[1:]]
    with_zeros = clone(estimator).fit(rows, labels)
    if name != "linear-probe":  # which takes rows as they are, and learns a bias from zeros
        np.testing.assert_array_equal(with_zeros.decision_function(QUERY), without)
    assert np.isfinite(with_zeros.predict_proba(np.vstack([np.zeros((2, 8)), QUERY]))).all()


def test_the_methods_hyper_parameters_are_nested_parameters() -> None:
    estimator = FewShotClassifier(GDA(shrinkage="oas"))
    nested = {k: v for k, v in estimator.get_params().items() if k.startswith("method__")}
    assert nested == {f"method__{k}": v for k, v in asdict(GDA(shrinkage="oas")).items()}
    assert set(estimator.get_params(deep=False)) == {"method", "text", "tune", "blend"}
    assert estimator.set_params(method__alpha=2.0, tune="cv") is estimator
    assert (estimator.method, estimator.tune) == (GDA(shrinkage="oas", alpha=2.0), "cv")


def test_setting_a_hyper_parameter_leaves_the_method_that_was_given_alone() -> None:
    method = GDA(shrinkage="oas")
    estimator = FewShotClassifier(method)
    copy = clone(estimator).set_params(method__alpha=2.0)
    assert (estimator.method, copy.method) == (GDA(shrinkage="oas"), replace(method, alpha=2.0))


def test_a_method_and_its_hyper_parameter_can_be_set_at_once() -> None:
    estimator = FewShotClassifier("gda").set_params(method__penalty=3.0, method="ridge")
    assert estimator.method == Ridge(penalty=3.0)


def test_an_unknown_method_can_be_looked_at_and_mended() -> None:
    estimator = FewShotClassifier("gad")
    assert set(estimator.get_params()) == {"method", "text", "tune", "blend"}
    assert "gad" in repr(estimator)
    assert estimator.set_params(method="gda").fit(X, Y).method_ == GDA()


def test_a_transductive_method_sees_the_rows_of_one_call_together() -> None:
    estimator = FewShotClassifier("transclip", text=NAMED).fit(X, Y)
    assert (
        np.abs(
            estimator.decision_function(QUERY)[:5] - estimator.decision_function(QUERY[:5])
        ).max()
        > 0.01
    )


def test_it_computes_in_single_precision() -> None:
    estimator = FewShotClassifier("gda", text=NAMED).fit(X, Y)
    assert estimator.decision_function(QUERY).dtype == np.float32
    assert estimator.predict_proba(QUERY).dtype == np.float32


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "gad"}, "unknown method 'gad'; did you mean 'gda'"),
        ({"method": GDA}, "method must be a name or a method such as GDA"),
        ({"method": None}, r"method must be a name or a method such as GDA\(\); got None"),
        ({"method": "zero-shot"}, "zero-shot needs text features and there are none"),
        ({"text": {"ant": NAMED["ant"]}}, "unknown class of the text 'bee'; known: ant"),
        ({"text": {**NAMED, "cat": NAMED["cat"][:7]}}, "text must have rows of one length"),
        ({"text": {k: v[:7] for k, v in NAMED.items()}}, r"got \(3, 7\); give each label with its"),
        ({"text": TEXT}, "labels 0 to C-1; got 'ant'; give each label"),
        ({"text": Text(torch.ones(3, 8))}, "labels 0 to C-1; got .*'ant'"),
        ({"text": Text(torch.ones(3, 8), names=("ant", "bee", "ant"))}, "two rows of one name"),
        (
            {"text": {**NAMED, "ant": 0 * NAMED["ant"]}},
            "a direction for each class; got a row of z",
        ),
        ({"text": {1, 2}}, r"text must be rows of numbers; got \{1, 2\}"),
        ({"text": "class-mean"}, "unknown text 'class-mean'; did you mean 'class-means'"),
        ({"tune": "val"}, "unknown tuning protocol 'val'; known: cv, none"),
    ],
)
def test_what_cannot_be_fitted_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FewShotClassifier(**parameters).fit(X, Y)


@pytest.mark.parametrize("name", ["zero-shot", "gda", "cross-modal"])
def test_texts_are_matched_with_labels_by_name_in_any_order(name: str) -> None:
    expected = FewShotClassifier(quick(name), text=NAMED).fit(X, Y).decision_function(QUERY)
    backward = {"dog": NAMED["ant"], **dict(reversed(NAMED.items()))}  # of one class too many
    rows = torch.nn.functional.normalize(torch.tensor(np.stack(list(backward.values())))).float()
    for text in (backward, Text(rows, names=tuple(backward))):
        estimator = FewShotClassifier(quick(name), text=text).fit(X, Y)
        np.testing.assert_allclose(estimator.decision_function(QUERY), expected, atol=1e-4)


def test_labels_that_are_numbers_from_zero_go_by_the_rows_of_an_array() -> None:
    expected = FewShotClassifier("gda", text=NAMED).fit(X, Y)
    classes = np.sort(NAMES)
    rows = np.stack([NAMED[name] for name in classes])
    estimator = FewShotClassifier("gda", text=rows).fit(X, np.searchsorted(classes, Y))
    np.testing.assert_array_equal(classes[estimator.predict(QUERY)], expected.predict(QUERY))
    with pytest.raises(
        UserError, match=r"each of the 3 classes of y and X's 8 columns; got \(2, 8\)"
    ):
        FewShotClassifier("gda", text=rows[:2]).fit(X, np.searchsorted(classes, Y))


def test_features_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UserError, match="linear-probe needs features that are not all zero"):
        FewShotClassifier("linear-probe").fit(0 * X, Y)


def test_one_class_or_one_direction_is_refused() -> None:
    with pytest.raises(UserError, match="two classes are needed to tell apart; y has 1 class"):
        FewShotClassifier().fit(X, ["ant"] * 60)
    with pytest.raises(UserError, match=r"gda compares directions.*n_features = 1; add features"):
        FewShotClassifier().fit(X[:, :1], Y)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method__alhpa": 1}, "unknown setting of gda 'alhpa'; did you mean 'alpha'"),
        ({"method__alpha": -1}, "alpha must be 0 or more; got -1"),
    ],
)
def test_a_hyper_parameter_that_the_method_cannot_have_is_refused(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        FewShotClassifier("gda").set_params(**setting)


def test_importing_fewshot_does_not_wait_for_scikit_learn() -> None:
    code = "import sys, fewshot; sys.exit('sklearn' in sys.modules)"
    root = Path(fewshot.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
