"""Checks of a dataclass's settings, for its `__post_init__`; each raises UserError with one line.

Where a setting may also be a word, such as "published", `words` names those that will do.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from cache.errors import UserError, unknown

FINITE = "give a finite number"
LARGEST = 2**31 - 1  # of a count: torch's sizes overflow where several such are multiplied


def positive(settings: object, *names: str, hint: str = FINITE) -> None:
    """Raise UserError unless each setting is a finite number above 0."""
    _check(settings, names, lambda x: x > 0, "more than 0", hint)


def non_negative(
    settings: object, *names: str, hint: str = FINITE, words: Sequence[str] = ()
) -> None:
    """Raise UserError unless each setting is a finite number, 0 or more."""
    _check(settings, names, lambda x: x >= 0, "0 or more", hint, words)


def whole(
    settings: object, *names: str, minimum: int = 1, hint: str = "", words: Sequence[str] = ()
) -> None:
    """Raise UserError unless each setting is a whole number, `minimum` or more, of 31 bits."""

    def allowed(x: Any) -> bool:
        return isinstance(x, Integral) and int(x) >= minimum

    expected = f"a whole number, {minimum} or more"
    _check(settings, names, allowed, expected, hint or f"the minimum is {minimum}", words)
    at_most = f"a whole number, at most {LARGEST}"
    _check(settings, names, lambda x: x <= LARGEST, at_most, "use a smaller one", words)


def require_seed(seed: object) -> None:
    """Raise UserError unless the random seed is a whole number of 64 bits."""
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        raise UserError(f"seed must be a whole number of 64 bits; got {seed!r:.60}")


def fraction(
    settings: object,
    *names: str,
    above_zero: bool = False,
    below_one: bool = False,
    hint: str = "give a fraction",
    words: Sequence[str] = (),
) -> None:
    """Raise UserError unless each setting is 0 to 1, without an end that is excluded."""

    def allowed(x: Any) -> bool:
        return bool((x > 0 if above_zero else x >= 0) and (x < 1 if below_one else x <= 1))

    low = "more than 0" if above_zero else "0 or more"
    expected = f"{low} and {'less than' if below_one else 'at most'} 1"
    _check(settings, names, allowed, expected, hint, words)


def one_of(settings: object, name: str, choices: Sequence[str]) -> None:
    """Raise UserError unless the setting is one of the choices."""
    value = getattr(settings, name)
    if value not in choices:
        raise unknown(name, str(value), choices)


def _check(
    settings: object,
    names: Sequence[str],
    allowed: Callable[[Any], bool],
    expected: str,
    hint: str,
    words: Sequence[str] = (),
) -> None:
    for name in names:
        value = getattr(settings, name)
        if words and isinstance(value, str):
            one_of(settings, name, words)
        elif not isinstance(value, Real) or not math.isfinite(value) or not allowed(value):
            got = value if isinstance(value, Real) else repr(value)
            expected += f", or {' or '.join(words)}" if words else ""
            if isinstance(value, Real) and not math.isfinite(value):
                hint = FINITE
            raise UserError(f"{name} must be {expected}; got {got}; {hint}")
