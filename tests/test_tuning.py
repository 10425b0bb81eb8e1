from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cache.errors import UserError
from fewshot import GDA, METHODS, SupportSet, ZeroShot, tune
from fewshot.abilities import TunesItself
from fewshot.classifier import LinearClassifier
from fewshot.method import Grid, Method, variants
from fewshot.model_selection import choosing, tuning
from fewshot.model_selection.choosing import VariantScore, best
from fewshot.model_selection.folds import held_out
from fewshot.model_selection.protocols import PROTOCOLS, default_protocol
from fewshot.model_selection.tuning import cv_folds
from fewshot.text import Text, required
from tests.toys import support_near, vectors

N_CLASSES = 5


def task(shots: int = 6, noise: float = 1.0, n_views: int = 0) -> tuple[SupportSet, Text]:
    centers = vectors(0, N_CLASSES, 16)
    labels = torch.arange(N_CLASSES).repeat(shots)
    support = support_near(centers, labels, n_views=n_views, noise=noise)
    return support, Text(normalize(centers + vectors(3, N_CLASSES, 16)))


def parts(support: SupportSet) -> list[tuple[SupportSet, Tensor, Tensor]]:
    """What tuning by cv trains on and judges by: features and labels."""
    return [
        (train, support.features[rows], support.labels[rows])
        for train, rows in held_out(support, cv_folds(support))
    ]


def validation(n: int = 200) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % N_CLASSES
    return normalize(vectors(0, N_CLASSES, 16)[labels] + vectors(9, n, 16)), labels


@dataclass(frozen=True)
class Stretched(Method):
    """A method without a sweep of its own: zero-shot, stretched."""

    factor: float = 1.0

    name: ClassVar[str] = "stretched"
    grid: ClassVar[Grid] = {"factor": (0.01, 8.0, 9999.0)}

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        return LinearClassifier(self.factor * required(text, self.name))


def test_the_default_is_cv_wherever_an_image_can_be_held_out() -> None:
    assert [default_protocol(shots) for shots in (0, 1, 2, 16)] == ["none", "none", "cv", "cv"]


def test_no_tuning_leaves_the_method_as_it_is() -> None:
    support, text = task()
    method = GDA(alpha=3.5)
    assert tune(method, support, text, protocol="none", validation=validation()) is method


def test_a_method_without_a_grid_is_left_as_it_is() -> None:
    support, text = task()
    for protocol in PROTOCOLS:
        assert tune(ZeroShot(), support, text, protocol=protocol) == ZeroShot()


def test_fields_outside_the_grid_stand() -> None:
    support, text = task()
    tuned = tune(GDA(shrinkage="oas"), support, text, protocol="cv")
    assert tuned.shrinkage == "oas"
    assert tuned.alpha in GDA.grid["alpha"]


def test_a_given_grid_replaces_the_methods_own() -> None:
    support, text = task()
    tuned = tune(GDA(), support, text, protocol="cv", grid={"alpha": (5.5, 5.25)})
    assert tuned.alpha in (5.5, 5.25, GDA.alpha)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, method in METHODS.items()
        if method.grid and not isinstance(method(), TunesItself)
    ],
)
@pytest.mark.parametrize("protocol", ["cv", "val"])
def test_tuning_finds_what_a_loop_over_refits_finds(
    name: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "STEPS", 0)
    support, text = task()
    method = METHODS[name]()
    if "epochs" in {field.name for field in fields(method)}:
        method = replace(method, epochs=6)
    folds = parts(support) if protocol == "cv" else [(support, *validation())]
    by_hand: dict[Method, VariantScore] = {}
    own = {name: getattr(method, name) for name in method.grid}
    grid = {name: tuple(dict.fromkeys((*v, own[name]))) for name, v in method.grid.items()}
    for variant in variants(method, grid):
        logits = torch.cat([variant.fit(train, text).logits(x) for train, x, _ in folds])
        labels = torch.cat([y for _, _, y in folds])
        correct = logits.argmax(dim=1) == labels
        by_hand[variant] = VariantScore(
            correct, float(cross_entropy(logits, labels, reduction="sum"))
        )
    tuned = tune(method, support, text, protocol=protocol, validation=validation())
    # Not the same variant: some are equal but for rounding, and either may then be chosen.
    expected = by_hand[best(by_hand, method)]
    assert by_hand[tuned].loss == pytest.approx(expected.loss, rel=1e-3)
    assert len({score.loss for score in by_hand.values()}) > len(by_hand) / 2


def test_a_method_without_a_sweep_is_fitted_for_every_candidate() -> None:
    support, text = task()
    query, _ = validation()
    swept = list(Stretched().sweep(Stretched.grid, support, text, query))
    assert [variant.factor for variant, _ in swept] == [0.01, 8.0, 9999.0]
    torch.testing.assert_close(swept[1][1], 8 * query @ text.features.T)
    upside_down = Stretched(-1.0)
    assert tune(upside_down, support, text, protocol="val", validation=validation()).factor == 8.0


def test_weak_text_asks_for_more_of_the_images_and_weak_images_for_less() -> None:
    support, text = task(noise=0.5)
    noise = Text(vectors(7, N_CLASSES, 16))
    trusting = tune(GDA(), support, noise, protocol="cv")
    hopeless, _ = task(noise=20.0)
    doubting = tune(GDA(), hopeless, text, protocol="val", validation=validation())
    assert trusting.alpha > doubting.alpha


@dataclass(frozen=True)
class Backward(Method):
    """A method whose variants are all alike, and whose sweep begins with the last."""

    factor: float = 1.0

    name: ClassVar[str] = "backward"
    grid: ClassVar[Grid] = {"factor": (3.0, 1.0, 2.0)}

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        return LinearClassifier(required(text, self.name))

    def sweep(
        self, grid: Grid, support: SupportSet, text: Text | None, query: Tensor
    ) -> Iterator[tuple[Self, Tensor]]:
        for variant in reversed(list(variants(self, grid))):
            yield variant, variant.fit(support, text).logits(query)


@pytest.mark.parametrize("protocol", ["cv", "val"])
def test_equals_leave_the_method_as_it_is_in_whatever_order_they_were_swept(protocol: str) -> None:
    support, text = task()
    tuned = tune(Backward(), support, text, protocol=protocol, validation=validation())
    assert tuned == Backward()


@pytest.mark.parametrize(("shots", "n_folds"), [(2, 2), (3, 3), (4, 4), (16, 4)])
def test_folds_hold_every_image_out_once_and_are_stratified(shots: int, n_folds: int) -> None:
    support, _ = task(shots)
    folds = parts(support)
    assert len(folds) == n_folds
    held = torch.cat([features for _, features, _ in folds])
    assert {tuple(row) for row in held.tolist()} == {tuple(r) for r in support.features.tolist()}
    assert len(held) == len(support.labels)
    for train, features, labels in folds:
        assert len(train.labels) + len(labels) == len(support.labels)
        assert not {tuple(r) for r in train.features.tolist()} & {
            tuple(r) for r in features.tolist()
        }
        counts = torch.bincount(labels, minlength=N_CLASSES)
        assert counts.max() - counts.min() <= 1
        assert train.shots >= 1


def test_classes_of_unequal_size_are_all_trained_on_in_every_fold() -> None:
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 5)
    support = SupportSet(vectors(0, 16, 8), labels, 3)
    folds = parts(support)
    assert len(folds) == 2
    assert [train.shots for train, _, _ in folds] == [1, 1]


def test_a_held_out_image_takes_all_its_views_along() -> None:
    support, _ = task(4, n_views=3)
    assert support.views is not None
    image_of = {
        tuple(view.tolist()): image for views in support.views for image, view in enumerate(views)
    }
    row_of = {tuple(row.tolist()): image for image, row in enumerate(support.features)}
    for train, features, _ in parts(support):
        assert train.views is not None
        trained_on = {image_of[tuple(view.tolist())] for view in train.views.flatten(0, 1)}
        held_out = {row_of[tuple(row.tolist())] for row in features}
        assert len(train.views) == 3
        assert not trained_on & held_out
        assert len(trained_on) + len(held_out) == 20


def held_out_by(monkeypatch: pytest.MonkeyPatch, fold: Tensor | None = None) -> list[int]:
    """How many images tuning by cv judges by, part by part."""
    support, text = task(16)  # four folds of 20
    judged = []

    sweep = GDA.sweep

    def watched(*args: Any) -> Iterator[tuple[Method, Tensor]]:
        judged.append(len(args[-1]))
        return sweep(*args)

    monkeypatch.setattr(GDA, "sweep", watched)
    tune(GDA(), support, text, protocol="cv", fold=fold)
    return judged


def test_folds_stop_once_enough_images_were_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "ENOUGH", 30)
    assert held_out_by(monkeypatch) == [20, 10]


def test_the_images_of_a_fold_cut_short_are_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    support, text = task(16)
    order = torch.argsort(support.labels, stable=True)  # class by class, as stores are
    judged: list[Tensor] = []
    add = VariantScore.add

    def watched(self: VariantScore, logits: Tensor, labels: Tensor) -> None:
        judged.append(labels)
        add(self, logits, labels)

    monkeypatch.setattr(VariantScore, "add", watched)
    monkeypatch.setattr(tuning, "ENOUGH", 10)
    tune(GDA(), support.subset(order), text, protocol="cv")
    assert torch.bincount(judged[0]).tolist() == [2, 2, 2, 2, 2]


@pytest.mark.parametrize("protocol", ["cv", "val"])
def test_queries_in_blocks_are_scored_as_at_once(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    support, _ = task(noise=0.5)
    method, text = GDA(alpha=0.0), Text(vectors(7, N_CLASSES, 16))
    at_once = tune(method, support, text, protocol=protocol, validation=validation())
    judged = []
    sweep = GDA.sweep

    def watched(*args: Any) -> Iterator[tuple[Method, Tensor]]:
        judged.append(len(args[-1]))
        return sweep(*args)

    monkeypatch.setattr(GDA, "sweep", watched)
    monkeypatch.setattr(tuning, "LOGITS", 4 * N_CLASSES)
    assert tune(method, support, text, protocol=protocol, validation=validation()) == at_once
    assert at_once != method
    assert max(judged) == 4


def test_given_folds_decide_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = torch.full((80,), -1)
    fold[:7], fold[7:10] = 0, 1
    assert held_out_by(monkeypatch, fold) == [7, 3]


def test_cross_validation_at_one_shot_names_the_default() -> None:
    support, text = task(1)
    with pytest.raises(UserError, match=r"cv needs two images of every class.*got 1.*use none"):
        tune(GDA(), support, text, protocol="cv")


@pytest.mark.parametrize("protocol", ["val", "full-val"])
def test_a_protocol_without_its_images_is_refused(protocol: str) -> None:
    support, text = task()
    with pytest.raises(UserError, match=f"tuning by {protocol} needs validation images"):
        tune(GDA(), support, text, protocol=protocol)


def test_a_misspelt_protocol_is_named_with_the_nearest() -> None:
    support, text = task()
    with pytest.raises(UserError, match="unknown tuning protocol 'full_val'; did you mean"):
        tune(GDA(), support, text, protocol="full_val")


def test_tuning_by_cv_ignores_validation_images_it_is_given() -> None:
    support, text = task()
    features, labels = validation()
    wrong = tune(GDA(), support, text, protocol="cv", validation=(features, labels.flip(0)))
    assert wrong == tune(GDA(), support, text, protocol="cv")


def test_alpha_chosen_on_fewer_shots_is_near_the_one_best_for_all() -> None:
    support, text = task(16)
    chosen = tune(GDA(), support, text, protocol="cv")
    n = validation(4000)
    accuracies = {
        alpha: float(
            (replace(chosen, alpha=alpha).fit(support, text).logits(n[0]).argmax(dim=1) == n[1])
            .float()
            .mean()
        )
        for alpha in GDA.grid["alpha"]
    }
    # Two standard errors of an accuracy on 4000 images are 1.6 % at most.
    assert accuracies[chosen.alpha] > max(accuracies.values()) - 0.016
    assert accuracies[chosen.alpha] > min(accuracies.values()) + 0.016
