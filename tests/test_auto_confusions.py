import pytest
import torch
from torch import Tensor

from fewshot.automatic.confusions import confused_pairs


def task(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (200,), generator=g)
    logits = torch.randn(200, 6, generator=g)
    logits[torch.arange(200), labels] += 1
    logits[:, 1] += 0.5 * (labels == 0)
    logits[:, 5] -= 9
    return torch.softmax(logits, dim=1), labels, torch.rand(200, generator=g) < 0.9


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_a_count_of_mistakes_the_surest_first(seed: int) -> None:
    p, labels, judged = task(seed)
    by_hand: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for i in range(200):
        predicted = int(p[i].argmax())
        if judged[i] and predicted != labels[i]:
            by_hand.setdefault((int(labels[i]), predicted), []).append((-float(p[i].max()), i))
    found = confused_pairs(p, labels, judged, n=4, examples=3)
    assert len(found) == 4
    totals = [
        len(by_hand.get((a, b), [])) + len(by_hand.get((b, a), []))
        for a in range(6)
        for b in range(a)
    ]
    assert [pair.count for pair in found] == sorted(totals, reverse=True)[:4]
    for pair in found:
        assert pair.more.count >= pair.less.count
        assert (pair.more.label, pair.more.predicted) == (pair.less.predicted, pair.less.label)
        for way in (pair.more, pair.less):
            mistakes = sorted(by_hand.get((way.label, way.predicted), []))
            assert way.count == len(mistakes)
            assert way.rows == tuple(row for _, row in mistakes[:3])


def test_what_is_never_confused_is_not_listed() -> None:
    p = torch.eye(3)[[0, 1, 1, 2]]
    found = confused_pairs(p, torch.tensor([0, 0, 1, 2]), torch.ones(4, dtype=torch.bool))
    assert [(pair.more.label, pair.more.predicted, pair.count) for pair in found] == [(0, 1, 1)]
    assert found[0].less.rows == ()
