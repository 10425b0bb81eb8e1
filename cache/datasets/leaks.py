"""Images that are in two splits, or twice in one.

Paths are compared by keys of 8 bytes: a set of ten million paths would take gigabytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, compress, islice

import numpy as np
from numpy.typing import NDArray

from cache.datasets.items import Item, paths_of
from cache.datasets.path_index import path_keys
from cache.errors import count

_KEYS = 2**16  # keys of paths that are compared at once


def ascending_keys(items: Sequence[Item]) -> NDArray[np.uint64]:
    """(N,) the keys of the paths of N images, sorted."""
    keys = path_keys(paths_of(items), len(items))
    keys.sort()
    return keys


def n_repeats(keys: NDArray[np.uint64]) -> int:
    """How many of the ascending keys are the same as the one before."""
    return int(np.sum(keys[1:] == keys[:-1]))


def leaks(
    splits: Mapping[str, Sequence[Item]], keys: Mapping[str, NDArray[np.uint64]]
) -> Iterator[str]:
    """Two splits that share images, a line for each such pair.

    Args:
        splits: Split -> images.
        keys: Split -> `ascending_keys` of its images.
    """
    for one, other in combinations(splits, 2):
        alike = _in_both(keys[one], keys[other])
        if not len(alike):
            continue
        both = sorted(_with_keys(splits[one], alike) & _with_keys(splits[other], alike))
        if both:
            images_are = count(len(both), "image is", "images are")
            yield f"{images_are} in {one} and in {other}, first: {both[0]}"


def _in_both(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys that two ascending lists share, found without a copy of either."""
    if not len(other):
        return other
    found = []
    for start in range(0, len(one), _KEYS):
        some = one[start : start + _KEYS]
        at = np.minimum(np.searchsorted(other, some), len(other) - 1)
        found.append(some[other[at] == some])
    return np.concatenate(found) if found else one


def _with_keys(items: Sequence[Item], keys: NDArray[np.uint64]) -> set[str]:
    """The paths that have one of the keys."""
    paths, found = paths_of(items), set[str]()
    while some := list(islice(paths, _KEYS)):
        found.update(compress(some, np.isin(path_keys(some), keys)))
    return found
