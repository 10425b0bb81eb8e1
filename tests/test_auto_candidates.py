from itertools import pairwise

import pytest

from fewshot import GDA, METHODS
from fewshot.automatic.candidates import candidates

SIZES = [(2, 2), (40, 10), (400, 100), (4000, 10), (4000, 500), (50_000, 500)]


@pytest.mark.parametrize(("n_images", "n_classes"), SIZES)
def test_every_method_is_either_tried_or_left_out_for_a_reason(
    n_images: int, n_classes: int
) -> None:
    found = candidates(n_images, n_classes)
    assert sorted([*found.names, *found.left_out]) == sorted(METHODS)
    assert all(found.left_out.values())


def test_what_needs_the_whole_query_or_no_labels_is_never_tried() -> None:
    found = candidates(2, 2)
    assert found.left_out == {
        "gda-em": "learns from images without labels",
        "ueo": "learns from images without labels",
        "transclip": "classifies images together, not one by one",
    }
    assert found.names[:4] == ("zero-shot", "nearest-mean", "gda", "ridge")


def test_the_first_answer_waits_for_stack_and_for_what_takes_half_a_second() -> None:
    quick = candidates(200, 10).quick
    slow = {"tip-x", "ape", "ape-t", "taskres", "clip-adapter", "cross-modal", "linear-probe"}
    assert {"zero-shot", "nearest-mean", "gda", "ridge", "proker", "stack"} <= set(quick)
    assert not slow & set(quick)
    assert quick[0] == "zero-shot"


def test_a_method_that_says_nothing_of_its_size_is_tried_at_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(GDA):
        name = "mine"

    monkeypatch.setitem(METHODS, "mine", Mine)
    assert "mine" in candidates(50_000, 500).names


def test_the_larger_the_task_the_fewer_are_tried() -> None:
    names = [set(candidates(*size).names) for size in SIZES]
    assert all(more >= fewer for more, fewer in pairwise(names) if fewer)
    assert names[-1] == {"zero-shot", "nearest-mean", "gda", "ridge"}


def test_the_reason_is_the_limit_that_is_passed() -> None:
    assert "proker" in candidates(2000, 2).names
    assert candidates(2001, 2).left_out["proker"] == "slow with more than 2,000 images"
    reason = candidates(400, 501).left_out["linear-probe"]
    assert reason == "slow with more than 200,000 images times classes"
    assert "linear-probe" in candidates(400, 500).names
