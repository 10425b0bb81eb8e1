import pytest
import torch
from torch.nn.functional import normalize

from fewshot.automatic.to_label import to_label


def naive(features: torch.Tensor, p: torch.Tensor, n: int) -> list[int]:
    unit = normalize(features)
    margins = [float(row.sort().values[-1] - row.sort().values[-2]) for row in p]
    chosen: list[int] = []
    while len(chosen) < n:
        scores = {}
        for i in range(len(p)):
            if i not in chosen:
                near = [1 - float(unit[i] @ unit[j]) for j in chosen]
                scores[i] = (1 - margins[i]) * min([1.0, *near])
        chosen.append(max(scores, key=lambda i: scores[i]))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_a_loop(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    features = 2 + torch.randn(40, 8, generator=g)
    p = torch.softmax(2 * torch.randn(40, 4, generator=g), dim=1)
    found = to_label(features, p, 12)
    assert [one.row for one in found] == naive(features, p, 12)
    for one in found:
        values, classes = p[one.row].topk(2)
        assert [one.predicted, one.runner_up] == classes.tolist()
        assert one.margin == pytest.approx(float(values[0] - values[1]))


def test_ten_photos_of_one_thing_are_listed_once_before_anything_else_is_listed_twice() -> None:
    g = torch.Generator().manual_seed(0)
    burst = torch.randn(1, 16, generator=g).repeat(10, 1)
    others = torch.randn(5, 16, generator=g)
    p = torch.tensor([[0.5, 0.5]] * 10 + [[0.8, 0.2]] * 5)
    rows = [one.row for one in to_label(torch.cat([burst, others]), p, 6)]
    assert rows[0] == 0
    assert sorted(rows[1:]) == [10, 11, 12, 13, 14]


def test_the_sure_ones_are_left_for_last_and_no_row_comes_twice() -> None:
    features = normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)))
    p = torch.tensor([[0.98, 0.02], [0.6, 0.4]] * 3)
    rows = [one.row for one in to_label(features, p, 99)]
    assert sorted(rows) == list(range(6))
    assert set(rows[:3]) == {1, 3, 5}


def test_without_images_nothing_is_to_be_labeled() -> None:
    assert to_label(torch.empty(0, 8), torch.empty(0, 3)) == ()


def test_what_is_sure_needs_no_label() -> None:
    p = torch.tensor([[0.995, 0.005], [0.6, 0.4], [0.985, 0.015]])
    assert [one.row for one in to_label(torch.eye(3), p, n=3)] == [1, 2]
    assert to_label(torch.eye(3), p[:1].expand(3, 2)) == ()
