from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot.support import SupportSet, spread

FEATURES = normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
VIEWS = torch.stack([FEATURES, -FEATURES])


def support(**changes: Any) -> SupportSet:
    return SupportSet(**{"features": FEATURES, "labels": LABELS, "n_classes": 3, **changes})


def test_shots_are_those_of_the_smallest_class() -> None:
    assert support().counts.tolist() == [3, 2, 1]
    assert support().shots == 1


def test_without_views_the_samples_are_the_center_crops() -> None:
    features, labels = support().samples()
    torch.testing.assert_close(features, FEATURES)
    torch.testing.assert_close(labels, LABELS)
    assert support().n_views == 1


def test_with_views_each_view_is_a_sample_with_its_images_label() -> None:
    features, labels = support(views=VIEWS).samples()
    torch.testing.assert_close(features, torch.cat([FEATURES, -FEATURES]))
    torch.testing.assert_close(labels, torch.cat([LABELS, LABELS]))
    assert support(views=VIEWS).n_views == 2


@pytest.mark.parametrize("rows", [torch.tensor([0, 1, 2]), torch.arange(6) < 3])
def test_a_subset_takes_the_views_along(rows: torch.Tensor) -> None:
    part = support(views=VIEWS).subset(rows)
    assert part.views is not None
    torch.testing.assert_close(part.features, FEATURES[:3])
    torch.testing.assert_close(part.views, VIEWS[:, :3])
    torch.testing.assert_close(part.labels, LABELS[:3])


def test_features_of_any_norm_are_taken_where_they_should_be_as_the_encoder_gave_them() -> None:
    given = support(features=3 * FEATURES, views=0.5 * VIEWS, unit_norm=False)
    assert not given.subset(torch.tensor([0, 1, 2])).unit_norm
    with pytest.raises(UserError, match="features must be finite; 1 row is not"):
        support(features=nan_in_row_two(), unit_norm=False)


def nan_in_row_two() -> torch.Tensor:
    features = FEATURES.clone()
    features[2, 0] = torch.nan
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:5]}, r"got \(6, 4\) and \(5,\)"),
        ({"features": FEATURES[:, 0]}, r"features must be \(N, D\).*got \(6,\)"),
        ({"labels": LABELS[:, None]}, r"got \(6, 4\) and \(6, 1\)"),
        ({"features": nan_in_row_two()}, "features must be finite; 1 row is not"),
        ({"features": FEATURES.double()}, "features must be float32; got torch.float64"),
        ({"features": 2 * FEATURES}, r"unit norm; row \d has 2;"),
        ({"labels": LABELS.int()}, "labels must be int64; got torch.int32"),
        ({"labels": ["ant", "bee"] * 3}, r"got \['ant', .*; number class names from 0 on"),
        ({"labels": 3}, r"got \(6, 4\) and \(\)"),
        ({"features": None}, "expected an array of numbers; got None"),
        ({"labels": LABELS - 1}, r"labels must be 0\.\.2, for 3 classes; got -1"),
        ({"labels": LABELS + 1}, r"labels must be 0\.\.2, for 3 classes; got 3"),
        ({"n_classes": 4}, "4 classes needs an image; 1 has none, such as class 3"),
        ({"labels": 0 * LABELS, "n_classes": 1}, "two classes are needed to tell apart; got 1"),
        ({"views": VIEWS[:, :5]}, r"views must be \(V, N, D\).*got \(2, 5, 4\)"),
        ({"views": FEATURES}, r"views must be \(V, N, D\).*got \(6, 4\)"),
        ({"views": VIEWS[:0]}, r"got \(0, 6, 4\)"),
        ({"views": 0.5 * VIEWS}, r"views must have unit norm; row \d has 0.5"),
        ({"views": torch.stack([FEATURES, nan_in_row_two()])}, "views must be finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        support(**changes)


def test_an_empty_set_lacks_every_class() -> None:
    with pytest.raises(UserError, match="3 have none, such as class 0"):
        support(features=FEATURES[:0], labels=LABELS[:0])


@pytest.mark.parametrize(("n", "most"), [(7, 9), (9, 9), (10, 3), (100_003, 997)])
def test_rows_are_spread_evenly_and_no_more_than_asked(n: int, most: int) -> None:
    rows = spread(n, most)
    assert len(rows) == min(n, most)
    gaps = rows.diff()
    assert int(gaps.max()) - int(gaps.min()) <= 1
    assert int(rows[0]) == 0
    assert n - int(gaps.max()) - 1 <= int(rows[-1]) < n
