"""CoOp's search for the strength of a linear probe, by bisection on held-out images."""

import math
from collections.abc import Callable, Sequence
from functools import cache

BISECTIONS = 8


def bisected(accuracy: Callable[[float], float], candidates: Sequence[float]) -> float:
    """Return C by CoOp's search: the best candidate, then eight bisections between its neighbors.

    In log10 C, from one below the best to one above: whichever end of the interval is worse moves
    to the middle, and the better end of the last interval is the answer; of equal ones, the first.

    Args:
        accuracy: Of a C, on held-out images.
        candidates: The values of C to begin with.
    """
    accuracy = cache(accuracy)
    start = math.log10(max(candidates, key=accuracy))
    left, right = start - 1, start + 1
    best = start
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        if accuracy(10**left) < accuracy(10**right):
            best, left = right, middle
        else:
            best, right = left, middle
    return float(10**best)
