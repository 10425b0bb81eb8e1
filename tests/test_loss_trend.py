import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fewshot.endtoend.loss_trend import LossTrend


def trend_of(losses: Sequence[float]) -> LossTrend:
    trend = LossTrend(len(losses))
    for step, loss in enumerate(losses, start=1):
        trend.add(step, loss)
    return trend


def noisy(level: Callable[[int], float], steps: int = 400) -> list[float]:
    noise = np.random.default_rng(0).normal(0.0, 0.5, steps)
    return [level(i) + float(noise[i]) for i in range(steps)]


def test_a_loss_that_falls_is_no_complaint() -> None:
    assert trend_of(noisy(lambda i: 2.0 - i / 400)).complaint() == ""


@pytest.mark.parametrize("level", [lambda i: 2.0, lambda i: 2.0 + i / 400, lambda i: 0.0])
def test_a_loss_that_stays_or_rises_is_one(level: Callable[[int], float]) -> None:
    assert "the loss did not fall" in trend_of(noisy(level)).complaint()
    assert "the loss did not fall" in trend_of([level(0)] * 30).complaint()


def test_the_limit_is_twice_the_standard_error_of_the_difference() -> None:
    losses = noisy(lambda i: 1.0, 300)
    first, last = np.array(losses[:30]), np.array(losses[-30:])
    error = math.hypot(first.std(ddof=1), last.std(ddof=1)) / math.sqrt(30)
    for share, complains in ((1.9, True), (2.1, False)):
        shift = share * error - (first.mean() - last.mean())
        moved = [*(first + shift), *losses[30:]]
        assert bool(trend_of(moved).complaint()) == complains
    said = trend_of(losses).complaint()
    assert f"its mean is {first.mean():.3g} over the first 30 steps" in said
    assert f"and {last.mean():.3g} over the last 30" in said
    assert f"is {2 * error:.2g}" in said


def test_a_fall_by_less_than_a_hundredth_is_none() -> None:
    assert trend_of([1.0] * 50 + [0.992] * 50).complaint()
    assert not trend_of([1.0] * 50 + [0.988] * 50).complaint()


def test_few_steps_say_nothing() -> None:
    assert trend_of([1.0] * 19).complaint() == ""
    assert trend_of([1.0] * 20).complaint()


def test_the_sums_of_a_stopped_training_continue() -> None:
    losses = noisy(lambda i: 1.0, 100)
    stopped = LossTrend(100)
    for step, loss in enumerate(losses[:5], start=1):
        stopped.add(step, loss)
    resumed = LossTrend(100)
    resumed.load_state(stopped.state())
    for step, loss in enumerate(losses[5:], start=6):
        resumed.add(step, loss)
    assert resumed.state() == trend_of(losses).state()
