import numpy as np
import pytest

from cache.errors import UserError
from fewshot.imbalance import draw_imbalanced

NAMES = ["cat", "dog", "newt"]
MIXED = [2, 0, 0, 1, 2, 1, 0, 2, 1, 1, 0, 2, 2]
MANY = [k for _ in range(100) for k in range(11)]  # eleven classes of a hundred
ELEVEN = [f"c{k}" for k in range(11)]


def sizes(profile: str, shots: int, seed: int = 1) -> list[int]:
    """The images of each class, checked to be distinct ones of their class."""
    sample = draw_imbalanced(MANY, ELEVEN, profile=profile, shots=shots, seed=seed)
    assert len(set(sample.train.tolist())) == len(sample.train)
    counts = np.bincount(np.asarray(MANY)[sample.train], minlength=11)
    assert sample.shots == counts.max()
    assert sample.val is None
    return [int(count) for count in counts]


def test_a_long_tail_falls_by_the_same_factor_from_class_to_class() -> None:
    expected = [round(100 * 100 ** (-i / 10)) for i in range(11)]
    assert expected == [100, 63, 40, 25, 16, 10, 6, 4, 3, 2, 1]
    assert sorted(sizes("long-tail:100", 100), reverse=True) == expected


def test_no_class_is_left_without_an_image() -> None:
    assert min(sizes("long-tail:100", 8)) == 1
    assert sorted(sizes("step:1000", 8)) == [1] * 5 + [8] * 6


def test_a_step_gives_half_of_the_classes_less() -> None:
    assert sorted(sizes("step:10", 40)) == [4] * 5 + [40] * 6


@pytest.mark.parametrize("profile", ["long-tail:1", "step:1", "step:1.0"])
def test_a_ratio_of_one_is_no_imbalance(profile: str) -> None:
    assert sizes(profile, 7) == [7] * 11


def test_the_seed_says_which_classes_are_large_and_which_images_are_drawn() -> None:
    orders = {tuple(sizes("long-tail:100", 100, seed)) for seed in (1, 2, 3)}
    assert len(orders) == 3
    samples = [
        draw_imbalanced(MANY, ELEVEN, profile="step:2", shots=10, seed=seed).train.tolist()
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_natural_is_the_whole_split_in_its_order() -> None:
    sample = draw_imbalanced(MIXED, NAMES, profile="natural", shots=1, seed=3)
    assert sample.train.tolist() == list(range(13))
    assert (sample.shots, sample.seed) == (5, 3)  # class 2 has five


@pytest.mark.parametrize(
    ("profile", "shots", "message"),
    [
        ("long-tail:100", 101, r"long-tail:100 from 101 shots needs 101 train images of 'c\d+'"),
        ("long-tail:100", 0, "shots must be 1 or more; got 0"),
        ("long-tail", 8, r"imbalance must be .*; got 'long-tail'; long-tail:100 is the usual"),
        ("long-tail:0.5", 8, "imbalance must be long-tail:R or step:R with R of 1 or more"),
        ("long-tail:inf", 8, "got 'long-tail:inf'"),
        ("long-tail:nan", 8, "got 'long-tail:nan'"),
        ("step:ten", 8, "got 'step:ten'"),
        ("natural:2", 8, "got 'natural:2'"),
        ("pareto:2", 8, "got 'pareto:2'"),
    ],
)
def test_a_profile_that_cannot_be_drawn_is_refused(profile: str, shots: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_imbalanced(MANY, ELEVEN, profile=profile, shots=shots, seed=1)


def test_a_natural_split_may_lack_a_class() -> None:
    sample = draw_imbalanced([0, 1, 0, 1], NAMES, profile="natural", shots=1, seed=1)
    assert (sample.train.tolist(), sample.shots) == ([0, 1, 2, 3], 2)
