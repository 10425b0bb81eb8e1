from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fewshot import GDA, Ridge
from fewshot.estimator import FewShotClassifier
from tests.toy_rows import NAMED, QUERY, TEXT, X, Y, named


def test_cross_val_score_is_the_loop_over_its_folds() -> None:
    expected = []
    for train, held in StratifiedKFold(3).split(X, Y):
        fitted = FewShotClassifier("gda", text=NAMED).fit(X[train], Y[train])
        expected.append((fitted.predict(X[held]) == Y[held]).mean())
    scores = cross_val_score(FewShotClassifier("gda", text=NAMED), X, Y, cv=3)
    np.testing.assert_allclose(scores, expected)
    assert len(set(expected)) > 1


def test_a_grid_search_tries_hyper_parameters_and_methods() -> None:
    grid = [
        {"method": ["gda"], "method__alpha": [0.0, 8.0]},
        {"method": [Ridge()], "method__penalty": [0.1]},
    ]
    search = GridSearchCV(FewShotClassifier(text=NAMED), grid, cv=3, scoring="neg_log_loss")
    search.fit(X, Y)
    for method, score in zip(
        (GDA(alpha=0.0), GDA(), Ridge(penalty=0.1)),
        search.cv_results_["mean_test_score"],
        strict=True,
    ):
        alone = FewShotClassifier(method, text=NAMED)
        scores = cross_val_score(alone, X, Y, cv=3, scoring="neg_log_loss")
        assert score == pytest.approx(scores.mean())
    winner = (GDA(alpha=0.0), GDA(), Ridge(penalty=0.1))[search.best_index_]
    assert search.best_estimator_.method_ == winner


def test_a_pipeline_reaches_its_hyper_parameters() -> None:
    halved = FunctionTransformer(lambda rows: rows[:, :4])
    pipeline = make_pipeline(halved, FewShotClassifier("gda", text=named(TEXT[:, :4])))
    pipeline.set_params(fewshotclassifier__method__alpha=2.0).fit(X, Y)
    alone = FewShotClassifier(GDA(alpha=2.0), text=named(TEXT[:, :4])).fit(X[:, :4], Y)
    np.testing.assert_array_equal(pipeline.predict_proba(QUERY), alone.predict_proba(QUERY[:, :4]))


def test_calibration_lowers_the_log_loss_of_one_who_is_too_sure() -> None:
    sure = FewShotClassifier("zero-shot", text=NAMED).set_params(method__logit_scale=1000.0)
    calibrated = CalibratedClassifierCV(sure, cv=3).fit(X, Y)
    truth = np.searchsorted(calibrated.classes_, Y)

    def log_loss(classifier: Any) -> float:
        proba = classifier.predict_proba(QUERY)
        assert proba.sum(axis=1) == pytest.approx(1)
        return float(-np.log(np.clip(proba[np.arange(60), truth], 1e-30, 1)).mean())

    assert log_loss(calibrated) < log_loss(sure.fit(X, Y))
