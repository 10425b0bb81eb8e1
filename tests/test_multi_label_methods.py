import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import (
    LinearProbe,
    NearestMean,
    Ridge,
    SupportSet,
    TipAdapter,
    evaluate,
)
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.multi_label.label_fitting import fit_labels
from fewshot.multi_label_support import MultiLabelSupport
from fewshot.text import Text
from tests.toy_label_sets import DIM, sets_of, text, write_label_store


def support(n: int = 30) -> MultiLabelSupport:
    draw = torch.Generator().manual_seed(0)
    sets = torch.from_numpy(sets_of(n, 0))
    return MultiLabelSupport(normalize(torch.randn(n, DIM, generator=draw), dim=1), sets)


def test_a_probe_is_a_binary_regression_for_each_class() -> None:
    few = support()
    got = LinearProbe(C=30.0, C_unit="published", tol=1e-7).fit_multi_label(few, None)
    assert got.bias is not None
    for k in range(4):
        reference = LogisticRegression(C=30.0, tol=1e-10, max_iter=10_000)
        reference.fit(few.features.double().numpy(), few.label_sets[:, k].numpy())
        assert np.allclose(got.weight[k], reference.coef_[0], atol=1e-3)
        assert math.isclose(float(got.bias[k]), reference.intercept_[0], abs_tol=1e-3)


def test_a_probe_of_a_class_that_a_fold_lacks_is_finite() -> None:
    few = support()
    sets = few.label_sets.clone()
    sets[:, 0] = False
    sets[3, 0] = True
    got = LinearProbe().fit_multi_label(MultiLabelSupport(few.features, sets), None)
    assert got.weight.isfinite().all()


@pytest.mark.parametrize("n", [5, 30])  # fewer images than dimensions, and more
@pytest.mark.parametrize("given", [None, text()])
def test_ridge_has_a_target_for_each_label(n: int, given: Text | None) -> None:
    rows = torch.arange(n)
    sets = torch.eye(4).bool()[rows % 4] | torch.eye(4).bool()[rows // 2 % 4]
    few = MultiLabelSupport(support().features[:n], sets)
    got = Ridge(penalty=0.7, margin=5.0, logit_scale=9.0).fit_multi_label(few, given).weight
    x = few.features.double()
    w0 = torch.zeros(4, DIM).double()
    if given is not None:
        w0 = 9.0 * (given.features - given.features.mean(dim=0)).double()
    target = 5.0 * (sets.double() - sets.double().mean(dim=1, keepdim=True)) - x @ w0.T
    by_hand = w0 + torch.linalg.solve(x.T @ x + 0.7 * torch.eye(DIM).double(), x.T @ target).T
    torch.testing.assert_close(got.double(), by_hand, atol=1e-4, rtol=1e-4)


def test_tip_adapter_votes_for_every_label_of_an_image() -> None:
    few, query = support(), support(40).features[30:]
    got = TipAdapter(alpha=2.0, beta=3.0, logit_scale=10.0).fit_multi_label(few, text())
    affinity = torch.exp(3.0 * (query @ few.features.T - 1))
    by_hand = 10.0 * query @ text().features.T + 2.0 * affinity @ few.label_sets.float()
    torch.testing.assert_close(got.logits(query), by_hand)


def test_a_class_mean_is_over_all_images_of_the_class() -> None:
    few = support()
    got = NearestMean(logit_scale=1.0).fit_multi_label(few, None).weight
    means = torch.stack([few.features[few.label_sets[:, k]].mean(dim=0) for k in range(4)])
    torch.testing.assert_close(got, normalize(means, dim=1))


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("method", [NearestMean(), Ridge(), TipAdapter()])
def test_one_label_each_gives_the_classifier_of_one_label(
    method: NearestMean | Ridge | TipAdapter, n_views: int
) -> None:
    features, labels = support(24).features, torch.arange(24) % 4
    sets = torch.nn.functional.one_hot(labels).bool()
    noise = torch.randn(n_views, 24, DIM, generator=torch.Generator().manual_seed(5))
    views = normalize(features + 0.3 * noise, dim=2) if n_views else None
    one = method.fit(SupportSet(features, labels, 4, views), text())
    several = method.fit_multi_label(MultiLabelSupport(features, sets, views), text())
    torch.testing.assert_close(several.logits(features), one.logits(features))


@pytest.mark.parametrize("method", [LinearProbe(), Ridge()])
def test_views_that_are_copies_change_nothing(method: LinearProbe | Ridge) -> None:
    alone = support()
    copied = MultiLabelSupport(alone.features, alone.label_sets, alone.features.expand(3, -1, -1))
    features = alone.features
    torch.testing.assert_close(
        method.fit_multi_label(copied, text()).logits(features),
        method.fit_multi_label(alone, text()).logits(features),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_views_are_learned_from_unless_asked_otherwise(tmp_path: Path) -> None:
    store = write_label_store(tmp_path / "features" / "toy" / "views.h5", views=3)
    path = tmp_path / "a.safetensors"
    adapter, result = fit_and_save(store, "linear-probe", path, shots=6)
    crops = evaluate(store, "linear-probe", shots=6, views=False)
    assert result is not None
    assert (result.n_views, crops.n_views, adapter.training["views"]) == (3, 1, 3)
    assert result.accuracy != crops.accuracy
    fitted = fit_labels(store, "linear-probe", shots=6)
    kept = fitted.label_support
    assert kept is not None
    rows = torch.arange(len(kept)).flip(0)
    features, sets = kept.subset(rows).samples()
    assert torch.equal(sets, kept.label_sets[rows].repeat(3, 1))
    assert kept.views is not None
    assert torch.equal(features, kept.views[:, rows].flatten(0, 1))


def test_a_class_on_no_image_or_on_every_image_cannot_be_learned() -> None:
    sets = support().label_sets.clone()
    sets[:, 1] = True
    with pytest.raises(UserError, match="1 class has every image, such as class 1"):
        MultiLabelSupport(support().features, sets)
    with pytest.raises(UserError, match="1 class has no image, such as class 1"):
        MultiLabelSupport(support().features, sets & torch.tensor([True, False, True, True]))
