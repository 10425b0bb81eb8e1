from itertools import pairwise

from fewshot.svg import LETTER, WIDTH, axis, log_axis, point, with_room

LABELS = [(60.0 + 10 * i, f"{10 * i}") for i in range(48)]


def test_labels_neither_overlap_nor_leave_the_chart_and_both_ends_stay() -> None:
    kept = with_room(LABELS)
    assert kept[0] == LABELS[0]
    assert kept[-1][1] == LABELS[-1][1]
    assert 5 < len(kept) < len(LABELS)
    for (x, text), (after, other) in pairwise(kept):
        assert x + len(text) * LETTER / 2 < after - len(other) * LETTER / 2
    [(x, _)] = with_room([(WIDTH - 1.0, "10,000")])
    assert x + 6 * LETTER / 2 <= WIDTH
    assert with_room([]) == []
    assert with_room(LABELS[:2]) == LABELS[:1]


def test_ticks_are_round_and_within_the_axis() -> None:
    ticks, scale = axis(81.0, 97.0, 300, 20)
    assert ticks == [85, 90, 95]
    assert 20 <= scale(97.0) < scale(81.0) <= 300
    ticks, scale = log_axis([0.0, 3.0, 2000.0])
    assert ticks == [0, 1, 10, 100, 1000, 10_000]
    assert scale(0.0) < scale(1.0) < scale(10_000.0) < WIDTH


def test_a_point_tells_its_values_and_is_escaped() -> None:
    drawn = point(1.25, 2, 11, "a<b", "4", mark=0)
    assert 'aria-label="a&lt;b" data-column="4" data-x="1.2" data-y="2.0"' in drawn
    assert 'class="mark c1" d="M-4 0a4' in drawn
