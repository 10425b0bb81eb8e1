import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewshot.model_selection import near_duplicates as duplicates
from fewshot.model_selection.near_duplicates import (
    Conflict,
    conflicts,
    near_duplicates,
    scene_threshold,
    scenes,
)
from tests.toys import vectors


def naive_groups(features: Tensor, threshold: float) -> list[int]:
    """By asking each leader in turn."""
    leaders: list[Tensor] = []
    group = []
    for row in normalize(features):
        led = [k for k, leader in enumerate(leaders) if float(row @ leader) >= threshold]
        group.append(led[0] if led else len(leaders))
        if not led:
            leaders.append(row)
    return group


@pytest.mark.parametrize("block", [1024, 7, 1])
@pytest.mark.parametrize("seed", range(5))
def test_each_image_joins_the_first_leader_near_it_whatever_the_block(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    features = 3 * vectors(seed, 60, 3)
    found = near_duplicates(features, 0.9)
    assert found.tolist() == naive_groups(features, 0.9)
    assert 10 < found.max() < 50


def test_a_chain_of_neighbors_is_no_group() -> None:
    angle = torch.arange(100) * 0.05  # neighbors have a cosine of 0.9988
    found = near_duplicates(torch.stack([angle.cos(), angle.sin()], dim=1))
    assert torch.bincount(found).max() <= 3


def test_planted_duplicates_are_found_and_nothing_else() -> None:
    features = vectors(0, 300, 64)
    features[250] = normalize(features[10] + 0.005 * vectors(1, 64), dim=0)
    features[251] = 2 * features[20]
    features[252] = features[251]
    found = near_duplicates(features)
    assert found[250] == found[10]
    assert found[20] == found[251] == found[252]
    assert len(torch.unique(found)) == 297
    assert found[:250].tolist() == list(range(250))


def test_images_that_are_all_the_same_are_one_group() -> None:
    assert near_duplicates(torch.ones(50, 4)).tolist() == [0] * 50


def test_no_images_have_no_groups() -> None:
    assert near_duplicates(torch.empty(0, 4)).tolist() == []


def test_conflicts_are_the_groups_with_two_labels_the_largest_first() -> None:
    groups = torch.tensor([0, 1, 0, 2, 2, 2, 1])
    labels = torch.tensor([5, 3, 4, 1, 1, 2, 3])
    assert conflicts(groups, labels) == (Conflict((3, 4, 5), (1, 1, 2)), Conflict((0, 2), (5, 4)))


def test_the_scene_threshold_is_a_quarter_of_the_usual_distance() -> None:
    features = vectors(0, 60, 8)
    distances = [1 - float(features[i] @ features[j]) for i in range(60) for j in range(i)]
    expected = 1 - 0.25 * float(torch.tensor(distances).median())
    assert scene_threshold(2 * features) == pytest.approx(expected, abs=1e-6)


def test_a_large_class_counts_by_some_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    features = vectors(0, 4000, 8)
    some = scene_threshold(features)
    monkeypatch.setattr(duplicates, "TYPICAL", 4000)
    assert some == pytest.approx(scene_threshold(features), abs=0.02)


def test_a_class_of_one_image_is_a_scene_of_its_own() -> None:
    assert scene_threshold(vectors(0, 1, 8)) == duplicates.THRESHOLD
    assert scenes(torch.ones(4, 8), torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_scenes_are_those_of_each_class_by_itself() -> None:
    features, labels = vectors(0, 60, 4), torch.arange(60) % 3
    found = scenes(features, labels)
    for label in range(3):
        rows = torch.nonzero(labels == label).flatten()
        own = naive_groups(features[rows], scene_threshold(features[rows]))
        assert (found[rows] - found[rows].min()).tolist() == own
    assert sorted(set(found.tolist())) == list(range(int(found.max()) + 1))


def test_equal_images_are_a_scene_even_where_all_images_are_nearly_equal() -> None:
    features = torch.ones(6, 3) + 1e-6 * vectors(0, 6, 3)
    assert scene_threshold(features) < 1
    assert scenes(features, torch.zeros(6, dtype=torch.int64)).tolist() == [0] * 6


@pytest.mark.parametrize("common", [0.0, 3.0])
def test_bursts_are_scenes_however_alike_all_images_are(common: float) -> None:
    labels = torch.arange(4).repeat_interleave(24)
    centers = vectors(0, 4, 64)[labels] + vectors(1, 96, 64) + common * vectors(3, 64)
    centers[1::12] = centers[::12]  # in each class two bursts of two
    found = scenes(centers + 0.1 * vectors(2, 96, 64), labels)
    assert torch.equal(found[1::12], found[::12])
    assert len(torch.unique(found)) == 88


def test_what_is_linked_on_ucf101_is_of_one_recording(shared: Path) -> None:
    real = np.load(shared / "features" / "ucf101_openai_vitb16.npz")
    labels = torch.from_numpy(real["val_y"].astype(np.int64))
    found = scenes(torch.from_numpy(real["val_x"].astype(np.float32)), labels)
    recordings = [re.sub(r"_c[0-9]+[.]jpg$", "", str(path)) for path in real["val_paths"]]
    recording = torch.from_numpy(np.unique(recordings, return_inverse=True)[1])
    one, other = torch.triu_indices(len(labels), len(labels), 1)
    linked, same = found[one] == found[other], recording[one] == recording[other]
    assert float(same[linked].double().mean()) == pytest.approx(0.966, abs=0.005)
    assert float(linked[same].double().mean()) == pytest.approx(0.273, abs=0.005)
