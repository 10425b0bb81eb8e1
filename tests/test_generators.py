from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import METHODS, Protocol, ZeroShot, base_to_new, configure, evaluate, fit
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.metrics import per_class_accuracy
from fewshot.model_selection.folds import ALWAYS_TRAINS
from fewshot.model_selection.tuning import cv_folds
from fewshot.protocol import Setting
from fewshot.results.groups import task_of
from fewshot.sampling import draw
from fewshot.support import SupportSet
from fewshot.synthesis.generators import described, generator_of, synthesize
from fewshot.synthesis.ship import ClassTexts, Ship
from fewshot.text import Text
from tests.small_stores import write_store
from tests.toys import task

QUICK = "ship images=3 latent=4 hidden=8 epochs=2"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    names = ("ant", "bee", "cat", "dog", "elk", "fox")
    return FeatureStore.open(write_store(tmp_path, "six", names=names, n_views=2))


def test_a_generator_is_described_by_its_name_and_what_is_set() -> None:
    assert generator_of("ship") == Ship()
    assert generator_of(" ship  images=8 beta=0.1 ") == Ship(beta=0.1, images=8)
    assert described(Ship()) == described(generator_of("ship beta=1")) == "ship"
    assert described(generator_of("ship images=8 beta=0.10")) == "ship beta=0.1 images=8"


WRONG = [
    ("ships", "unknown generator 'ships'; did you mean 'ship'"),
    ("", "unknown generator ''"),
    ("ship betta=1", "unknown setting of ship 'betta'; did you mean 'beta'"),
    ("ship beta", "must be NAME=VALUE, as in 'ship beta=0.1'; got 'beta'"),
    ("ship beta=", "must be NAME=VALUE"),
    ("ship beta=-1", "beta must be 0 or more"),
    ("ship decoder=words", "decoder must be text or tower"),
    ("ship images=0", "images must be a whole number, 1 or more"),
    ("ship lr=0", "lr must be more than 0"),
    ("ship epochs=many", "epochs must be a whole number; got 'many'"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_what_a_generator_cannot_take_is_refused_at_once(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Protocol(setting="base-to-new", synthesize=words)


def test_features_are_synthesized_for_classes_without_images_alone() -> None:
    with pytest.raises(UserError, match="few-shot has none; ask for base-to-new"):
        Protocol(shots=2, synthesize="ship")


def base_images(n_views: int = 0, *, scale: float = 1.0) -> tuple[SupportSet, torch.Tensor]:
    support, text, _ = task(4, shots=4, dim=12, n_views=n_views)
    kept = support.labels < 2
    views = None if support.views is None else scale * support.views[:, kept]
    base = SupportSet(
        scale * support.features[kept], support.labels[kept], 2, views, unit_norm=scale == 1
    )
    return base, text.features


@pytest.mark.parametrize("n_views", [0, 3])
def test_real_images_stay_and_every_new_class_gets_its_own(n_views: int) -> None:
    base, text = base_images(n_views)
    synthesized = synthesize(generator_of(QUICK), base, text, seed=1)
    whole = synthesized.beside(base)
    assert whole.n_classes == 4
    assert torch.equal(whole.features[:8], base.features)
    assert whole.labels.tolist() == [*base.labels.tolist(), 2, 2, 2, 3, 3, 3]
    assert torch.equal(synthesized.folds(cv_folds(base))[:8], cv_folds(base))
    assert set(synthesized.folds(cv_folds(base))[8:].tolist()) == {ALWAYS_TRAINS}
    made = Ship(images=3, latent=4, hidden=8, epochs=2).train(base, ClassTexts(text), 1)
    draws = torch.Generator().manual_seed(1)
    for got in (whole.features, *(() if whole.views is None else whole.views)):
        expected = made.features(whole.labels[8:], draws)
        torch.testing.assert_close(got[8:], expected)
    if whole.views is not None and base.views is not None:
        assert torch.equal(whole.views[:, :8], base.views)
    assert synthesized.measures == {
        "ship_reconstruction": made.log[-1].reconstruction, "ship_kl": made.log[-1].kl
    }  # fmt: skip


def test_features_of_other_norms_get_the_real_ones_mean_norm() -> None:
    base, text = base_images(scale=7.0)
    made = synthesize(generator_of(QUICK), base, text, seed=1)
    norms = made.beside(base).features.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 7.0))


def test_the_method_learns_both_and_is_asked_for_either_half(store: FeatureStore) -> None:
    result = base_to_new(store, "ridge", shots=3, seed=2, tune="none", synthesize=QUICK)
    rows = draw(store.labels("train"), store.classnames, shots=3, seed=2).train
    labels = torch.from_numpy(store.labels("train")[rows])
    kept = rows[(labels < 3).numpy()]
    support = SupportSet(
        torch.from_numpy(store.features("train", kept)),
        labels[labels < 3],
        3,
        torch.from_numpy(store.split("train").views(kept)),
    )
    text = torch.from_numpy(store.text())
    both = synthesize(generator_of(QUICK), support, text, 2).beside(support)
    ridge = configure("ridge", logit_scale=store.logit_scale)
    logits = ridge.fit(both, Text(text)).logits(torch.from_numpy(store.features("test")))
    if "share" in result.measures:
        zero = store.logit_scale * torch.from_numpy(store.features("test")) @ text.T
        logits = torch.lerp(zero, logits, result.measures["share"])
    truth = torch.from_numpy(store.labels("test"))
    for name, half in (("base", slice(0, 3)), ("new", slice(3, 6))):
        here = (truth >= half.start) & (truth < half.stop)
        said = logits[here][:, half].argmax(dim=1) + half.start
        right = float((said == truth[here]).double().mean())
        assert result.accuracies[name] == pytest.approx(right)
    assert (result.setting, result.synthesized, result.n_support) == ("base-to-new", QUICK, 9)
    assert result.measures["ship_kl"] >= 0
    assert f"--base-to-new --synthesize '{QUICK}'" in result.command(Path("s"), Path("o"))
    assert f"with {QUICK}" in result.label


def test_every_method_that_takes_labels_is_tested_on_both_halves(store: FeatureStore) -> None:
    for name, method in METHODS.items():
        if method.unsupervised() or name == "stack":
            continue
        result = evaluate(
            store, name, shots=2, tune="none", setting="base-to-new", synthesize=QUICK
        )
        assert set(result.accuracies) == {"base", "new"}
        assert result.synthesized == (QUICK if method.takes_support() else None)


def test_tuning_judges_by_real_images_alone(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    ridge = METHODS["ridge"]
    sweep = ridge.sweep

    def watched(self: Any, grid: Any, support: SupportSet, text: Any, query: torch.Tensor) -> Any:
        judged.append(len(query))
        assert bool((support.counts[3:] == 3).all())
        return sweep(self, grid, support, text, query)

    monkeypatch.setattr(ridge, "sweep", watched)
    base_to_new(store, "ridge", shots=2, seed=1, tune="cv", synthesize=QUICK)
    assert set(judged) == {3}


def test_the_share_of_zero_shot_goes_by_real_images_alone(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureStore, "logit_scale", 0.5)
    asked = Protocol(setting="base-to-new", shots=1, tune="none", blend=0.5)
    plain = evaluate(store, "gda", asked)
    with_ship = evaluate(store, "gda", asked, synthesize=QUICK)
    assert with_ship.measures["doubt"] == pytest.approx(plain.measures["doubt"])
    assert plain.measures["doubt"] < 1
    assert with_ship.measures["share"] == plain.measures["share"] == 0.5


def test_what_learns_from_text_alone_is_the_same_with_and_without(store: FeatureStore) -> None:
    plain = base_to_new(store, ZeroShot(), shots=2)
    with_ship = base_to_new(store, ZeroShot(), shots=2, synthesize="ship")
    assert with_ship.run == plain.run
    assert with_ship.accuracies == plain.accuracies


def test_results_with_and_without_are_of_two_tasks(store: FeatureStore) -> None:
    plain = base_to_new(store, "gda", shots=2, tune="none")
    made = base_to_new(store, "gda", shots=2, tune="none", synthesize=QUICK)
    assert task_of(plain.row) != task_of(made.row)
    assert f"with {QUICK}" in str(task_of(made.row))


def test_the_classifier_is_of_all_classes(store: FeatureStore) -> None:
    fitted = fit(
        store, "gda", shots=2, tune="none", setting="base-to-new", synthesize=QUICK, views=False
    )
    assert fitted.classifier.logits(torch.from_numpy(store.features("test"))).shape == (90, 6)
    assert fitted.support is not None
    assert np.bincount(fitted.support.labels).tolist() == [2, 2, 2, 3, 3, 3]


def test_without_text_there_is_nothing_to_make_features_of(tmp_path: Path) -> None:
    bare = write_store(tmp_path, "bare", text=())
    with pytest.raises(UserError, match=r"has no text, and ship makes features of class texts"):
        base_to_new(bare, "nearest-mean", shots=2, synthesize="ship")
    with pytest.raises(UserError, match=r"bare has no text, which ship needs"):
        plan(bench(tmp_path, "nearest-mean", ("bare",)))


def bench(root: Path, method: str, datasets: tuple[str, ...] = ("six",)) -> Bench:
    return Bench(
        methods=(method,), datasets=datasets, store=root, shots=(2,), seeds=(1,),
        protocol="base-to-new", synthesize="ship",
    )  # fmt: skip


def test_what_learns_from_no_labels_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gda-em learns from unlabeled images, and ship makes"):
        base_to_new(store, "gda-em", synthesize="ship")
    with pytest.raises(UserError, match="gda-em learns from unlabeled images, and ship makes"):
        plan(bench(tmp_path, "gda-em"))


def test_a_benchmark_plans_what_is_run(store: FeatureStore, tmp_path: Path) -> None:
    asked = replace(bench(tmp_path, "ridge"), synthesize=QUICK, tune="none")
    (cell,) = plan(asked).cells
    assert evaluate(store, "ridge", cell.protocol).run == cell.run


def test_seen_and_unseen_classes_are_told_apart_from_all_others(tmp_path: Path) -> None:
    names = ("ant", "bee", "cat", "dog", "elk", "fox")
    counts = (3, 5, 20, 30, 4, 28)  # unequal, as each class is to count alike
    labels = [k for k, n in enumerate(counts) for _ in range(n)]
    store = FeatureStore.open(write_store(tmp_path, "six", names=names, test_labels=labels))
    result = evaluate(store, "ridge", shots=3, tune="none", setting="generalized", synthesize=QUICK)
    fitted = fit(store, "ridge", shots=3, tune="none", setting="generalized", synthesize=QUICK)
    said = fitted.classifier.logits(torch.from_numpy(store.features("test"))).argmax(dim=1)
    each: dict[int, list[bool]] = {}
    for one, label in zip(said.tolist(), store.labels("test").tolist(), strict=True):
        each.setdefault(label, []).append(one == label)
    by_class = [sum(each[k]) / len(each[k]) for k in range(6)]
    s, u = sum(by_class[:3]) / 3, sum(by_class[3:]) / 3
    assert result.accuracies == pytest.approx({"seen": s, "unseen": u}, abs=1e-5)
    assert result.accuracy == pytest.approx(2 * s * u / (s + u), abs=1e-5)
    assert (result.setting, result.n_test, result.synthesized) == ("generalized", 90, QUICK)
    assert f"--generalized --synthesize '{QUICK}'" in result.command(Path("s"), Path("o"))


def test_classes_count_alike_however_many_images_they_have() -> None:
    labels = torch.tensor([5, 5, 5, 7])
    assert per_class_accuracy(torch.tensor([5, 5, 0, 7]), labels) == pytest.approx((2 / 3 + 1) / 2)


def test_zero_shot_of_seen_and_unseen_classes_is_that_of_all(store: FeatureStore) -> None:
    result = evaluate(store, "zero-shot", setting="generalized")
    plain = evaluate(store, "zero-shot")
    both = (result.accuracies["seen"] + result.accuracies["unseen"]) / 2
    assert both == pytest.approx(plain.per_class_accuracy, abs=1e-6)
    assert result.per_class_accuracy == pytest.approx(plain.per_class_accuracy)


def test_what_knows_only_classes_with_images_needs_a_generator_for_others(
    store: FeatureStore,
) -> None:
    settings: tuple[Setting, ...] = ("base-to-new", "generalized")
    for setting in settings:
        with pytest.raises(UserError, match=f"{setting} asks for others.*or synthesize features"):
            evaluate(store, "ridge", shots=2, setting=setting)
