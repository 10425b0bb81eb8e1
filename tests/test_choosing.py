from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import cross_entropy

from cache.errors import UserError
from fewshot import SupportSet
from fewshot.checks import fraction
from fewshot.classifier import LinearClassifier
from fewshot.method import Grid, Method, variants
from fewshot.model_selection.choosing import STEPS, VariantScore, best, continued
from fewshot.text import Text


@dataclass(frozen=True)
class Dial(Method):
    """A method of two settings, of which one ends at 1."""

    height: float = 1.0
    share: float = 0.5
    rounds: int = 1
    word: str = "a"

    name: ClassVar[str] = "dial"

    def __post_init__(self) -> None:
        fraction(self, "share")

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        raise NotImplementedError


def right(n_right: int, n: int = 1000) -> VariantScore:
    return VariantScore(torch.arange(n) < n_right)


def score(correct: str, loss: float = 0.0) -> VariantScore:
    """Of images that were classified rightly (+) and wrongly (-)."""
    return VariantScore(torch.tensor([mark == "+" for mark in correct]), loss)


class Judge:
    """Scores a variant by how near its height and share are to what is best."""

    def __init__(self, height: float, share: float = 0.5, gain: int = 100) -> None:
        self.height, self.share, self.gain = height, share, gain
        self.grids: list[Grid] = []

    def __call__(self, grid: Grid) -> Mapping[Dial, VariantScore]:
        self.grids.append(grid)
        return {dial: self.score(dial) for dial in variants(Dial(), grid)}

    def score(self, dial: Dial) -> VariantScore:
        far = abs(dial.height - self.height) / max(dial.height, self.height)
        return right(500 - round(self.gain * (far + abs(dial.share - self.share))))


def gone(judge: Judge, grid: Grid, chosen: Dial) -> Dial:
    return continued(grid, chosen, judge.score(chosen), judge)


HEIGHTS = {"height": (0.5, 1.0, 2.0, 4.0)}


@pytest.mark.parametrize(("height", "end", "found"), [(16.0, 4.0, 16.0), (0.25, 0.5, 0.25)])
def test_a_choice_at_an_end_continues_in_the_ratio_of_the_last_two_values(
    height: float, end: float, found: float
) -> None:
    assert gone(Judge(height), HEIGHTS, Dial(height=end)) == Dial(height=found)


def test_the_order_of_the_grid_makes_no_difference() -> None:
    shuffled = {"height": (2.0, 0.5, 4.0, 1.0)}
    assert gone(Judge(16.0), shuffled, Dial(height=4.0)) == Dial(height=16.0)


def test_a_choice_inside_the_grid_stands_and_costs_nothing() -> None:
    judge = Judge(16.0)
    assert gone(judge, HEIGHTS, Dial(height=2.0)) == Dial(height=2.0)
    assert judge.grids == []


def test_a_step_that_wins_by_no_more_than_chance_is_not_taken() -> None:
    alike = Judge(16.0, gain=0)
    assert gone(alike, HEIGHTS, Dial(height=4.0)) == Dial(height=4.0)
    assert len(alike.grids) == 1

    def height(wins: int) -> float:
        """The height chosen where a step wins so many images and loses 3."""
        step = right(500)
        step.correct[:3] = False
        step.correct[600 : 600 + wins] = True
        chosen = Dial(height=4.0)
        return continued(
            HEIGHTS, chosen, right(500), lambda grid: dict.fromkeys(variants(chosen, grid), step)
        ).height

    assert height(6) == 4.0  # a lead of 3 among 9
    assert height(7) > 4.0  # of 4 among 10


def test_steps_are_bounded() -> None:
    judge = Judge(200.0)
    assert gone(judge, HEIGHTS, Dial(height=4.0)) == Dial(height=4.0 * 2**STEPS)
    assert len(judge.grids) == STEPS


def test_a_step_is_tried_with_every_value_of_the_other_fields() -> None:
    grid = {"height": (1.0, 2.0), "share": (0.0, 0.5, 1.0)}
    # At height 2 a share of 0 is best, at 4 another is.
    judge = Judge(4.0)
    assert gone(judge, grid, Dial(height=2.0, share=0.0)) == Dial(height=4.0, share=0.5)
    assert judge.grids[0] == {"height": (4.0,), "share": (0.0, 0.5, 1.0)}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_axis_that_ends_by_nature_ends_there(share: float) -> None:
    judge = Judge(1.0, share=share)
    chosen = Dial(share=share)
    assert gone(judge, {"share": (0.0, 0.5, 1.0)}, chosen) == chosen
    assert judge.grids == []


def test_what_is_no_float_has_no_step() -> None:
    judge = Judge(1.0)
    grid = {"rounds": (1, 2, 4), "word": ("a", "b")}
    assert gone(judge, grid, Dial(rounds=4, word="b")) == Dial(rounds=4, word="b")
    assert gone(judge, {"height": (1.0,)}, Dial()) == Dial()
    assert judge.grids == []


def test_a_value_beyond_the_grid_must_beat_the_one_at_its_end() -> None:
    assert gone(Judge(4.0), HEIGHTS, Dial(height=4.0)) == Dial(height=4.0)


def test_what_a_method_refuses_is_no_step() -> None:
    with pytest.raises(UserError):
        replace(Dial(), share=1.5)
    judge = Judge(1.0, share=0.9)
    assert gone(judge, {"share": (0.3, 0.9)}, Dial(share=0.9)) == Dial(share=0.9)


def test_a_score_sums_over_all_it_was_given() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    parts = VariantScore()
    for rows in (slice(0, 2), slice(2, 3)):
        parts.add(logits[rows], labels[rows])
    assert parts.correct.tolist() == [True, True, False]
    assert parts.loss == pytest.approx(float(cross_entropy(logits, labels, reduction="sum")))


def test_the_own_settings_stay_unless_the_lead_exceeds_the_root_of_the_disagreements() -> None:
    own, other = Dial(1.0), Dial(2.0)
    # 3 disagreements, all for the other: a lead of 3 > sqrt(3).
    assert best({other: score("+++---"), own: score("------")}, own) == other
    # 5 disagreements, 4 to 1: a lead of 3 > sqrt(5).
    assert best({other: score("++++--"), own: score("----+-")}, own) == other
    # 7 disagreements, 5 to 2: a lead of 3 > sqrt(7); 10, 6 to 4: a lead of 2 < sqrt(10).
    assert best({other: score("+++++--"), own: score("-----++")}, own) == other
    assert best({other: score("++++++----"), own: score("------++++")}, own) == own
    # One image decides nothing.
    assert best({other: score("+-"), own: score("--")}, own) == own


def test_agreement_on_other_images_changes_nothing() -> None:
    own, other, alike = Dial(1.0), Dial(2.0), 1000 * "+"
    for lead, chosen in (("+++", other), ("++++++----", own)):
        flipped = lead.translate(str.maketrans("+-", "-+"))
        assert best({other: score(lead + alike), own: score(flipped + alike)}, own) == chosen


def test_log_loss_decides_only_among_equally_accurate_ones() -> None:
    own, sure, unsure = Dial(1.0), Dial(2.0), Dial(3.0)
    scores = {unsure: score("+++-", 9.0), sure: score("+++-", 1.0), own: score("----", 0.1)}
    assert best(scores, own) == sure
    assert best(scores | {Dial(4.0): score("++++", 99.0)}, own) == Dial(4.0)


def test_of_equals_the_first_is_chosen() -> None:
    own = Dial(1.0)
    scores = {Dial(3.0): score("++++"), Dial(2.0): score("++++"), own: score("----")}
    assert best(scores, own) == Dial(3.0)


def test_a_log_loss_that_is_no_number_loses() -> None:
    own = Dial(1.0)
    scores = {
        Dial(3.0): score("++++", float("nan")),
        Dial(2.0): score("++++", 9.0),
        own: score("----"),
    }
    assert best(scores, own) == Dial(2.0)
