import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from fewshot import SupportSet
from fewshot.model_selection.folds import folds, held_out


def random_labels(seed: int) -> Tensor:
    """Labels of 2 to 9 classes of 1 to 30 images each, in no order."""
    g = torch.Generator().manual_seed(seed)
    n_classes = int(torch.randint(2, 10, (1,), generator=g))
    sizes = torch.randint(1, 31, (n_classes,), generator=g).pow(2).div(30, rounding_mode="floor")
    labels = torch.repeat_interleave(torch.arange(n_classes), sizes + 1)
    return labels[torch.randperm(len(labels), generator=g)]


def random_groups(seed: int, n: int, n_groups: int) -> Tensor:
    return torch.randint(0, n_groups, (n,), generator=torch.Generator().manual_seed(seed))


def support(labels: Tensor) -> SupportSet:
    g = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(len(labels), 4, generator=g))
    return SupportSet(features, labels, int(labels.max()) + 1)


@pytest.mark.parametrize("seed", range(30))
def test_every_class_trains_in_every_fold_whatever_the_groups(seed: int) -> None:
    labels = random_labels(seed)
    for groups in (None, *(random_groups(seed, len(labels), n) for n in (2, 5, len(labels)))):
        fold = folds(labels, groups=groups, seed=seed)
        for k in range(int(fold.max()) + 1):
            assert set(labels[fold != k].tolist()) == set(labels.tolist())


@pytest.mark.parametrize("seed", range(30))
def test_a_class_is_dealt_evenly_and_only_a_lone_image_is_never_held_out(seed: int) -> None:
    labels = random_labels(seed)
    fold = folds(labels, seed=seed)
    total = torch.bincount(fold[fold >= 0], minlength=5)
    assert total.max() - total.min() <= 1 + int((torch.bincount(labels) == 1).sum())
    for label in torch.unique(labels):
        mine = fold[labels == label]
        if len(mine) == 1:
            assert mine.tolist() == [-1]
            continue
        counts = torch.bincount(mine, minlength=5)  # an error were there a -1
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("seed", range(30))
def test_a_group_is_never_split(seed: int) -> None:
    labels = random_labels(seed)
    groups = random_groups(seed, len(labels), max(2, len(labels) // 3))
    fold = folds(labels, groups=groups, seed=seed)
    for group in torch.unique(groups):
        assert len(torch.unique(fold[groups == group])) == 1


@pytest.mark.parametrize("seed", range(30))
def test_an_image_is_kept_for_training_only_where_its_class_would_have_no_other(seed: int) -> None:
    labels = random_labels(seed)
    groups = random_groups(seed, len(labels), max(2, len(labels) // 2))
    fold = folds(labels, groups=groups, seed=seed)
    for kept in torch.unique(groups[fold == -1]):
        classes = torch.unique(labels[groups == kept])
        others = [
            torch.unique(fold[(labels == c) & (groups != kept) & (fold >= 0)]) for c in classes
        ]
        assert min(len(found) for found in others) <= 1


def test_groups_of_a_class_go_where_it_has_fewest_images_not_where_all_have() -> None:
    # Class 0 fills folds unevenly by its one large group; class 1 is dealt evenly all the same.
    labels = torch.tensor([0] * 12 + [1] * 10)
    groups = torch.cat([torch.zeros(10, dtype=torch.int64), torch.arange(1, 13)])
    for seed in range(5):
        fold = folds(labels, groups=groups, seed=seed)
        assert torch.bincount(fold[12:]).tolist() == [2] * 5


def test_a_class_of_one_group_is_not_judged_and_the_others_are() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    groups = torch.tensor([7, 7, 7, 1, 2, 3])
    fold = folds(labels, groups=groups, seed=1)
    assert fold[:3].tolist() == [-1, -1, -1]
    assert (fold[3:] >= 0).all()


def test_groups_across_classes_that_leave_a_class_in_one_fold_are_kept_for_training() -> None:
    # Class 2 has no image but in the groups of classes 0 and 1, which may be dealt to one fold.
    labels = torch.tensor([0, 2, 0, 1, 2, 1])
    groups = torch.tensor([0, 0, 1, 2, 2, 3])
    kept = 0
    for seed in range(20):
        fold = folds(labels, groups=groups, n_folds=2, seed=seed)
        kept += int((fold == -1).any())
        for k in (0, 1):
            assert set(labels[fold != k].tolist()) == {0, 1, 2}
    assert kept


def test_the_order_is_the_seeds_and_no_other_generator_is_touched() -> None:
    labels = torch.arange(40) % 2
    before = torch.get_rng_state()
    assert torch.equal(folds(labels, seed=3), folds(labels, seed=3, n_folds=5))
    assert not torch.equal(folds(labels, seed=3), folds(labels, seed=4, n_folds=5))
    assert torch.equal(before, torch.get_rng_state())


def test_held_out_parts_are_the_images_of_each_fold_and_all_others() -> None:
    labels = random_labels(5)
    whole = support(labels)
    fold = folds(labels, n_folds=3, seed=1)
    parts = list(held_out(whole, fold))
    assert torch.equal(
        torch.cat([rows for _, rows in parts]).sort()[0], (fold >= 0).nonzero()[:, 0]
    )
    for k, (train, rows) in enumerate(parts):
        assert torch.equal(rows, (fold == k).nonzero()[:, 0])
        assert torch.equal(train.features, whole.features[fold != k])
        assert torch.equal(train.labels, labels[fold != k])


def test_where_every_class_has_one_image_nothing_is_held_out() -> None:
    fold = folds(torch.arange(4), seed=1)
    assert fold.tolist() == [-1] * 4
    assert not list(held_out(support(torch.arange(4)), fold))


@pytest.mark.parametrize("seed", range(30))
def test_images_without_groups_are_dealt_as_groups_of_one_image(seed: int) -> None:
    labels = random_labels(seed)
    alone = torch.arange(len(labels))
    for order in (None, seed):
        for n_folds in (2, 4, 7):
            expected = folds(labels, groups=alone, n_folds=n_folds, seed=order)
            assert torch.equal(folds(labels, n_folds=n_folds, seed=order), expected)


def test_without_a_seed_each_class_is_dealt_in_the_given_order_from_the_first_fold_on() -> None:
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 2, 1, 0])
    assert folds(labels, n_folds=3).tolist() == [0, 0, 1, 2, 1, 0, -1, 2, 1]


def test_one_fold_is_an_error() -> None:
    with pytest.raises(UserError, match="two folds are needed, one to learn from"):
        folds(torch.tensor([0, 0]), n_folds=1, seed=1)
