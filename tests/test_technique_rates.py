"""The benchmark of learning rates never judges by the test split, nor by what was learned."""

import pytest

from benchmarks.technique_rates import Task, settings_of
from cache.datasets.resolving import find


@pytest.fixture
def task() -> Task:
    return Task.of(find("digits"), shots=2, seed=1, judged=30)


def test_images_to_judge_are_of_the_train_split_and_were_not_drawn(task: Task) -> None:
    source = find("digits")
    train, test = ({item.path for item in source.splits[name]} for name in ("train", "test"))
    drawn, judged, others = (
        [item.path for item in items]
        for items in (
            task.few.splits["train"], task.few.splits["test"], task.unlabeled.splits["train"],
        )
    )  # fmt: skip
    assert (len(drawn), len(judged), len(others)) == (20, 30, 30)
    assert len({*drawn, *judged, *others}) == 80
    assert {*drawn, *judged, *others} <= train - test


def test_both_ways_to_learn_are_judged_by_the_same_images(task: Task) -> None:
    assert task.few.splits["test"] == task.unlabeled.splits["test"]


@pytest.mark.parametrize(("steps", "per_shot"), [(250, 62), (10_000, 500)])
def test_steps_are_cut_and_never_added(steps: int, per_shot: int) -> None:
    assert settings_of("bitfit", 4, steps, []) == {"lr": 1e-3, "iterations_per_shot": per_shot}


def test_published_recipes_keep_their_steps() -> None:
    assert settings_of("clip-lora", 4, 250, ["rank=4"]) == {"lr": 2e-4, "rank": "4"}
