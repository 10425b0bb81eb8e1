import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cache.errors import UserError
from fewshot.checks import fraction, non_negative, one_of, positive, require_seed, whole


@dataclass(frozen=True)
class Settings:
    x: Any
    y: Any = 0.5


def refused(check: Callable[[Settings], None], value: Any) -> bool:
    try:
        check(Settings(value))
    except UserError:
        return True
    return False


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (lambda s: positive(s, "x"), [1, 0.1, np.float32(2)], [0, -1]),
        (lambda s: non_negative(s, "x"), [0, 0.1, np.int64(2)], [-1e-9]),
        (lambda s: non_negative(s, "x", words=("published",)), [0, "published"], [-1, "publish"]),
        (lambda s: whole(s, "x"), [1, 7, np.int64(3), 2**31 - 1], [0, 1.5, 2.0, 2**31, 10**20]),
        (lambda s: whole(s, "x", minimum=0), [0, 7], [-1, 0.0]),
        (lambda s: whole(s, "x", words=("published",)), [1, "published"], [0, "else"]),
        (lambda s: fraction(s, "x"), [0, 0.5, 1], [-0.1, 1.1]),
        (lambda s: fraction(s, "x", above_zero=True), [0.1, 1], [0]),
        (lambda s: fraction(s, "x", below_one=True), [0, 0.9], [1]),
    ],
)
def test_a_check_lets_pass_what_it_names_and_nothing_else(
    check: Callable[[Settings], None], right: list[Any], wrong: list[Any]
) -> None:
    assert not any(refused(check, value) for value in right)
    everywhere = [math.nan, math.inf, -math.inf, None, [1], "many"]
    assert all(refused(check, value) for value in [*wrong, *everywhere])


def test_one_of_names_the_nearest_choice() -> None:
    one_of(Settings("exact"), "x", ("published", "exact"))
    with pytest.raises(UserError, match="unknown x 'exakt'; did you mean 'exact'"):
        one_of(Settings("exakt"), "x", ("published", "exact"))
    with pytest.raises(UserError, match="unknown x '3'"):
        one_of(Settings(3), "x", ("published", "exact"))


def test_the_error_says_what_was_expected_what_came_and_what_to_do() -> None:
    with pytest.raises(UserError, match=r"^x must be more than 0; got -1; 0 is zero-shot$"):
        positive(Settings(-1), "y", "x", hint="0 is zero-shot")
    expected = r"^x must be 0 or more and less than 1, or published; got \[0.5\]; give a fraction$"
    with pytest.raises(UserError, match=expected):
        fraction(Settings([0.5]), "x", below_one=True, words=("published",))
    with pytest.raises(UserError, match=r"^x must be a whole number, at most 2147483647; got 3000"):
        whole(Settings(3_000_000_000), "x")


def test_a_seed_is_any_whole_number_of_64_bits() -> None:
    for seed in (0, -(2**63), 2**63 - 1):
        require_seed(seed)
    for wrong in (2**63, -(2**63) - 1, 1.0, True, "1"):
        with pytest.raises(UserError, match="seed must be a whole number of 64 bits; got"):
            require_seed(wrong)
