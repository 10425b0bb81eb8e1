from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot.model_selection import resampling
from fewshot.model_selection.cross_validation import Failed, OutOfFold
from fewshot.model_selection.race import Tried, chance, race, try_all
from fewshot.model_selection.selection import select

N_FOLDS = 5


class Field:
    """Methods of which all logits are known, and how far each of them was tried."""

    def __init__(self, logits: dict[str, Tensor], labels: Tensor, seconds: float = 1.0) -> None:
        self.logits, self.labels, self.seconds = logits, labels, seconds
        self.fold = torch.arange(len(labels)) % N_FOLDS
        self.folds_of: dict[str, int] = {}
        self.order: list[str] = []

    def trial(self, name: str) -> Iterator[OutOfFold | Failed]:
        for k in range(N_FOLDS):
            self.folds_of[name] = k + 1
            self.order.append(name)
            yield self.judged(name, k + 1)

    def judged(self, name: str, n_folds: int) -> OutOfFold:
        seen = self.fold < n_folds
        logits = torch.where(seen[:, None], self.logits[name], torch.nan)
        correct = seen & (logits.argmax(dim=1) == self.labels)
        return OutOfFold(name, (), seen, correct, logits, self.seconds * n_folds)

    def race(self, first: Sequence[str]) -> Tried:
        others = [name for name in self.logits if name not in first]
        before = try_all("quick", first, self.trial, [1.0] * len(first))
        costs = [1.0] * len(others)
        return race(others, self.trial, costs, before, self.labels, self.fold)


def answers(labels: Tensor, right: Tensor, sure: float = 2.0) -> Tensor:
    """(N, 3) logits that are right where `right` is."""
    return sure * torch.nn.functional.one_hot((labels + ~right) % 3, 3).float()


def field(**wrong: int) -> Field:
    """Methods of 100 images, each wrong of the first so many."""
    labels = torch.arange(100) % 3
    return Field(
        {n: answers(labels, torch.arange(100) % 100 >= k) for n, k in wrong.items()}, labels
    )


def test_what_cannot_win_is_given_up_and_what_may_is_tried_to_the_end() -> None:
    found = field(quick=10, bad=60, better=2)
    raced = found.race(["quick"])
    assert {one.name for one in raced.finished} == {"quick", "better"}
    [bad] = raced.given_up
    assert (bad.name, bad.ahead, bad.images) == ("bad", "quick", 20)
    assert bad.accuracy == pytest.approx(0.4)
    assert bad.accuracy_ahead == pytest.approx(0.9)
    assert found.folds_of == {"quick": 5, "bad": 1, "better": 5}


def test_the_most_promising_goes_first_and_the_others_are_held_against_it() -> None:
    found = field(quick=40, middling=44, best=0)
    raced = found.race(["quick"])
    rest = found.order[N_FOLDS + 2 :]  # after the quick one, and a fold of each
    assert rest[:4] == ["best"] * 4
    assert [one.name for one in raced.given_up] == ["middling"]
    assert raced.given_up[0].ahead == "best"


def test_of_equal_promise_the_cheaper_goes_first() -> None:
    found = field(quick=5, dear=4, cheap=4)
    judged = found.judged

    def costing(name: str, n_folds: int) -> OutOfFold:
        one = judged(name, n_folds)
        factor = 10.0 if name == "dear" else 1.0
        return OutOfFold(one.name, (), one.judged, one.correct, one.logits, factor * n_folds)

    found.judged = costing  # type: ignore[method-assign]
    found.race(["quick"])
    assert found.order[N_FOLDS:][:3] == ["dear", "cheap", "cheap"]


def test_a_method_that_fails_in_a_later_fold_is_out_of_the_race() -> None:
    found = field(quick=5, fails=4)
    trial = found.trial

    def failing(name: str) -> Iterator[OutOfFold | Failed]:
        for k, one in enumerate(trial(name)):
            if name == "fails" and k == 2:
                yield Failed(name, "no memory", 1.0)
                return
            yield one

    found.trial = failing  # type: ignore[method-assign]
    raced = found.race(["quick"])
    assert [one.name for one in raced.finished] == ["quick"]
    assert raced.failed == (Failed("fails", "no memory", 1.0),)


def test_the_chance_is_the_share_of_resamples_that_would_choose_it() -> None:
    found = field(ahead=10, other=13)
    one, ahead = found.judged("other", 5), found.judged("ahead", 5)
    rng = np.random.default_rng(7)
    right = np.stack([ahead.correct.numpy(), one.correct.numpy()], axis=1)
    chosen = 0
    for _ in range(1000):
        # Of equally sure methods the more accurate one has the lower log-loss.
        a, b = right[rng.integers(0, 100, 100)].mean(axis=0)
        chosen += b >= a
    assert chance(one, ahead, found.labels) == pytest.approx(chosen / 1000, abs=0.02)
    assert chance(ahead, ahead, found.labels) == 1.0


def test_near_duplicates_count_once() -> None:
    found = field(ahead=10, other=13)
    one, ahead = found.judged("other", 5), found.judged("ahead", 5)
    # The three images that make the difference are left out together, or each by itself.
    together = chance(one, ahead, found.labels, groups=torch.arange(100) // 20)
    assert chance(one, ahead, found.labels) == pytest.approx(0.97**100, abs=0.03)
    assert together == pytest.approx(0.8**5, abs=0.06)
    assert chance(one, ahead, found.labels, groups=torch.zeros(100, dtype=torch.int64)) == 1.0


def test_of_methods_that_guess_the_accuracy_promised_is_that_of_guessing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 100)
    monkeypatch.setattr(resampling, "TEMPERATURES", (1.0,))  # for speed
    promised, best, given_up = [], [], []
    for seed in range(24):
        g = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 3, (60,), generator=g)
        noise = {f"m{i}": torch.randn(60, 3, generator=g) for i in range(12)}
        found = Field(noise, labels)
        raced = found.race(["m0", "m1", "m2"])
        promised.append(select(raced.finished, labels).accuracy)
        best.append(max(one.accuracy for one in raced.finished))
        given_up.append(len(raced.given_up))
    assert np.mean(given_up) > 0.5
    assert np.mean(best) > 1 / 3 + 0.06
    error = np.std(promised) / np.sqrt(len(promised))
    assert np.mean(promised) == pytest.approx(1 / 3, abs=3 * error)
