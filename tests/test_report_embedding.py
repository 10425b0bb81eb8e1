from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import UserError
from cache.importing.import_store import import_file
from cache.store import FeatureStore
from fewshot.evaluation import evaluate
from fewshot.fitting import fit
from fewshot.methods import GDA, ZeroShot
from fewshot.report.build import make
from fewshot.report.content import Maps
from fewshot.report.embedding import chosen, draw_maps, embed, refit
from fewshot.results.log import Result


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Three classes that overlap, twenty train and thirty test images each."""
    rng = np.random.default_rng(0)
    directions = np.eye(3, 8)
    arrays: dict[str, Any] = {"text_features": directions + 0.2}
    for split, n in (("train", 60), ("test", 90)):
        arrays[f"{split}_labels"] = np.arange(n) % 3
        noise = rng.normal(size=(n, 8)) * 0.5
        arrays[f"{split}_features"] = directions[np.arange(n) % 3] + noise
    np.savez(tmp_path / "f.npz", **arrays)
    root = tmp_path / "features"
    path = import_file(tmp_path / "f.npz", "mine", "ViT-B-32/openai", root)
    return FeatureStore.open(path)


@pytest.fixture
def fitted(store: FeatureStore) -> Result:
    return evaluate(store, GDA(logit_scale=store.logit_scale), shots=4, seed=2)


def test_the_most_frequent_classes_are_shown_first_ones_first() -> None:
    truth = np.array([3, 0, 3, 1, 3, 0, 2, 5])
    rows, of, classes = chosen(truth, 2, 100)
    assert classes == [0, 3]
    assert truth[rows].tolist() == [3, 0, 3, 3, 0]
    assert of.tolist() == [1, 0, 1, 1, 0]
    _, _, classes = chosen(truth, 3, 100)
    assert classes == [0, 1, 3]  # 1, 2 and 5 are as frequent
    rows, _, _ = chosen(np.arange(1000) % 4, 4, 50)
    assert len(rows) == 50


def test_maps_are_the_same_every_time_and_gather_the_classes(
    store: FeatureStore, fitted: Result
) -> None:
    maps, notes = draw_maps(store, fitted)
    assert notes == []
    assert list(maps.panels) == ["image features", "logits of gda"]
    assert maps.labels.tolist() == store.labels("test").tolist()
    _, logits, _ = refit(store, fitted)
    panel = maps.panels["logits of gda"]
    assert np.array_equal(panel, embed(logits.numpy()))
    centers = np.stack([panel[maps.labels == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(panel[:, None] - centers, axis=2).argmin(axis=1)
    assert (nearest == maps.labels).mean() > 0.7


def test_the_classifier_is_the_one_that_was_tested(store: FeatureStore, fitted: Result) -> None:
    features, logits, notes = refit(store, fitted)
    assert notes == []
    method = GDA(logit_scale=store.logit_scale)
    tuned = fit(store, method, shots=4, seed=2)
    torch.testing.assert_close(logits, tuned.classifier.logits(features))


def test_a_classifier_that_comes_out_otherwise_is_noted(
    store: FeatureStore, fitted: Result
) -> None:
    _, _, [note] = refit(store, replace(fitted, accuracy=fitted.accuracy - 0.1))
    assert "fitted again reaches" in note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "other"}, "another store than the one that was tested on"),
        ({"method": "unheard-of"}, "cannot be fitted on stored features"),
    ],
)
def test_what_cannot_be_fitted_again_is_refused(
    changes: dict[str, Any], message: str, store: FeatureStore, fitted: Result
) -> None:
    with pytest.raises(UserError, match=message):
        refit(store, replace(fitted, **changes))


def test_a_report_skips_what_it_cannot_map_and_says_so(
    store: FeatureStore, fitted: Result, tmp_path: Path
) -> None:
    scale = store.logit_scale
    zero_shot = evaluate(store, ZeroShot(logit_scale=scale))
    elsewhere = replace(zero_shot, setting="domain-generalization", fitted_on="another")
    results = [fitted, zero_shot, elsewhere]
    part = make(results, tsne=["zero-shot"], stores=tmp_path / "features").sections[-1]
    assert [type(block) for block in part.blocks.values()] == [Maps]
    assert "maps are of few-shot, zero-shot, unsupervised alone" in part.notes[-1]
    part = make(results, tsne=["gda"], stores=tmp_path / "empty").sections[-1]
    assert not part.blocks
    assert "Not drawn: gda on mine" in part.notes[-1]


def test_a_map_needs_some_points() -> None:
    with pytest.raises(UserError, match="3 test images are too few"):
        embed(np.eye(3, dtype=np.float32))
    assert embed(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)).shape == (4, 2)
