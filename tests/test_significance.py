import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.errors import UserError
from fewshot.results.prediction_files import Predictions
from fewshot.results.significance import PairedPredictions, compare, mcnemar

Rights = NDArray[np.bool_]


def pair(a: Rights, b: Rights, images: str = "one") -> PairedPredictions:
    """Predictions that are right where these say so."""
    labels = np.arange(len(a)) % 3
    names = ("ant", "bee", "cat")
    said = [
        Predictions(np.where(r, labels, (labels + 1) % 3), labels, names, images) for r in (a, b)
    ]
    return said[0], said[1]


def counted(
    both: int, only_a: int, only_b: int, neither: int, images: str = "one"
) -> PairedPredictions:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return pair(a, b, images)


def test_one_pair_is_counted_image_by_image() -> None:
    found = compare([counted(50, 12, 5, 33)])
    assert (found.n_pairs, found.n_images) == (1, 100)
    assert (found.only_a, found.only_b) == (12, 5)
    assert found.accuracy_a == pytest.approx(0.62)
    assert found.accuracy_b == pytest.approx(0.55)
    assert found.difference == pytest.approx(0.07)
    assert (found.p, found.mid_p) == mcnemar(12, 5)


@pytest.mark.parametrize("counts", list(product(range(5), repeat=2)))
def test_mcnemar_is_the_enumeration_of_all_ways_the_discordant_images_could_have_gone(
    counts: tuple[int, int],
) -> None:
    only_a, only_b = counts
    n, lead = only_a + only_b, abs(only_a - only_b)
    leads = [abs(sum(signs)) for signs in product((-1, 1), repeat=n)]
    p, mid_p = mcnemar(only_a, only_b)
    assert p == pytest.approx(sum(one >= lead for one in leads) / 2**n)
    # Half of what is just as great; at no lead at all everything is as great, on either side.
    tie = sum(one == lead for one in leads) / 2**n
    assert mid_p == pytest.approx(p - tie / 2 if lead else 1.0)


def test_mcnemar_of_a_textbook_example() -> None:
    # Fagerland et al. 2013, table 1: airway hyper-responsiveness before and after transplantation.
    p, mid_p = mcnemar(1, 7)
    assert p == pytest.approx(0.0703, abs=5e-5)
    assert mid_p == pytest.approx(0.0391, abs=5e-5)


def test_of_many_discordant_images_the_normal_approximation_says_the_same() -> None:
    p, mid_p = mcnemar(1080, 1000)
    assert mid_p == pytest.approx(math.erfc(80 / math.sqrt(2080) / math.sqrt(2)), rel=0.01)
    assert p > mid_p


def test_the_interval_is_that_of_resampled_images() -> None:
    a, b = counted(40, 14, 6, 20)
    rng = np.random.default_rng(7)
    right = (a.predicted == a.labels).astype(int) - (b.predicted == b.labels)
    rows = rng.integers(80, size=(20_000, 80))
    low, high = np.quantile(right[rows].mean(axis=1), (0.025, 0.975))
    found = compare([(a, b)])
    assert found.interval == pytest.approx((low, high), abs=1.01 / 80)
    deviation = math.sqrt((20 / 80 - 0.1**2) / 80)
    assert found.interval == pytest.approx(
        (0.1 - 1.96 * deviation, 0.1 + 1.96 * deviation), abs=0.013
    )


def test_the_same_comparison_gives_the_same_numbers_and_the_other_way_round_their_mirror() -> None:
    a, b = counted(40, 14, 6, 20)
    found, mirrored = compare([(a, b)]), compare([(b, a)])
    assert compare([(a, b)]) == found
    assert (mirrored.p, mirrored.mid_p) == (found.p, found.mid_p)
    assert mirrored.difference == pytest.approx(-found.difference)
    assert mirrored.interval == pytest.approx((-found.interval[1], -found.interval[0]), abs=1 / 80)


def test_equal_predictions_do_not_differ() -> None:
    a, _ = counted(40, 14, 6, 20)
    for pairs in ([(a, a)], [(a, a)] * 3):
        found = compare(pairs)
        assert (found.difference, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_the_same_images_seen_again_are_no_further_evidence() -> None:
    # Three seeds that all predict the same are one: were their images counted as 240, the interval
    # would be narrower by the root of three, and p far less.
    one = compare([counted(40, 14, 6, 20)])
    three = compare([counted(40, 14, 6, 20)] * 3)
    assert (three.n_pairs, three.n_images) == (3, 80)
    assert (three.only_a, three.only_b) == (42, 18)
    assert three.accuracy_a == pytest.approx(one.accuracy_a)
    assert three.interval == pytest.approx(one.interval, abs=1.01 / 80)
    assert three.p == pytest.approx(one.p, abs=0.006)
    assert three.mid_p is None


def test_the_pooled_test_is_the_enumeration_of_all_swaps_of_a_and_b_on_an_image() -> None:
    rng = np.random.default_rng(3)
    seeds = [pair(rng.random(9) < 0.8, rng.random(9) < 0.4) for _ in range(3)]
    other = pair(rng.random(4) < 0.9, rng.random(4) < 0.3, "other")
    per_image = sum(
        ((a.predicted == a.labels) * 1.0 - (b.predicted == b.labels)) / 9 for a, b in seeds
    )
    of_other = (
        (other[0].predicted == other[0].labels) * 1.0 - (other[1].predicted == other[1].labels)
    ) / 4
    shares = np.concatenate([np.asarray(per_image), of_other]) / 4
    swaps = np.array(list(product((-1, 1), repeat=13)))
    expected = (np.abs(swaps @ shares) >= abs(shares.sum()) - 1e-9).mean()
    found = compare([*seeds, other])
    assert found.difference == pytest.approx(shares.sum())
    assert found.p == pytest.approx(expected, abs=0.006)
    assert 0.001 < expected < 0.5
    assert (found.n_pairs, found.n_images) == (4, 13)


def test_every_pair_counts_the_same_however_many_images_it_has() -> None:
    small, large = counted(0, 10, 0, 10, "small"), counted(0, 0, 0, 1000, "large")
    found = compare([small, large])
    assert found.difference == pytest.approx(0.25)
    # Only the small one's images move it: by half of what they move it alone.
    alone = compare([small]).interval
    assert found.interval == pytest.approx((alone[0] / 2, alone[1] / 2), abs=0.026)


def test_different_test_images_are_refused() -> None:
    a, b = counted(4, 3, 2, 1)
    with pytest.raises(UserError, match="different test images, 10 and 10 of them, cannot be"):
        compare([(a, replace(b, images="other"))])
    shorter = replace(b, predicted=b.predicted[:5], labels=b.labels[:5])
    with pytest.raises(UserError, match="different test images, 10 and 5"):
        compare([(a, shorter)])


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        a, b = rng.random(300) < 0.7, rng.random(300) < 0.6
        low, high = compare([pair(a, b)]).interval
        held += low <= 0.1 <= high
    assert held >= 52  # of 60, where 57 are to be expected
