"""Images that may have several labels: the store, the few shots, the methods, the labels."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from cache.store_check import inspect, verify
from cli import main
from fewshot import (
    LinearProbe,
    evaluate,
    load_adapter,
    tables,
)
from fewshot.adapters.adapter_file import write_adapter
from fewshot.adapters.description import describe
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.adapters.stored_images import StoredImages
from fewshot.bench.attempt import Attempt
from fewshot.bench.config import ALL, Bench
from fewshot.bench.mean_table import mean_table
from fewshot.bench.plan import plan
from fewshot.label_rule import LabelRule
from fewshot.multi_label.label_fitting import fit_labels
from fewshot.multi_label.label_metrics import (
    average_precision,
    average_precisions,
    mean_known,
    micro_f1,
    precision_recall_f1,
)
from fewshot.multi_label.positives import draw_positives, positive_folds
from fewshot.results.log import Result
from fewshot.run import Run
from tests.toy_label_sets import NAMES, sets_of, write_label_store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return write_label_store(tmp_path / "features" / "toy" / "noise.h5")


def test_a_store_keeps_all_labels_and_says_so(store: FeatureStore) -> None:
    assert store.multi_label
    assert np.array_equal(store.split("train").label_sets, sets_of(120, 0))
    assert verify(store.path) == []
    assert "120 images, " in inspect(store.path)
    assert f"labels per image: {sets_of(120, 0).sum() / 120:.1f}" in inspect(store.path)
    with h5py.File(store.path) as file:
        assert file.attrs["schema"] == 3  # an older version says that it is too old


def test_work_on_one_label_of_each_image_is_refused(store: FeatureStore) -> None:
    with pytest.raises(UserError, match="may have several labels, and this needs one of each"):
        store.labels("train")


def test_label_sets_without_the_class_in_labels_are_damage(tmp_path: Path) -> None:
    sets = sets_of(80, 1)
    sets[5] = False
    with pytest.raises(UserError, match=r"/test/label_sets: not 0 and 1, with 1 for the image's"):
        write_label_store(tmp_path / "x.h5", sets=sets)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_class_gets_its_shots_and_none_is_drawn_for_nothing(seed: int) -> None:
    sets = sets_of(200, 3)
    drawn = draw_positives(sets, NAMES, shots=7, seed=seed).train
    assert len(set(drawn.tolist())) == len(drawn)
    assert (sets[drawn].sum(axis=0) >= 7).all()
    # Without its last image, the last class that drew has too few.
    assert (sets[drawn[:-1]].sum(axis=0) < 7).any()
    assert sets[drawn].sum(axis=0)[0] >= 7
    assert sets[drawn[:7], 0].all()  # the rarest class begins, and there are seven of it
    again = draw_positives(sets, NAMES, shots=7, seed=seed).train
    assert np.array_equal(again, drawn)
    assert not np.array_equal(draw_positives(sets, NAMES, shots=7, seed=9).train, drawn)


def test_too_few_images_of_a_class_are_named() -> None:
    sets = sets_of(20, 0)
    with pytest.raises(UserError, match=r"20 train images .* 'ant' \(class 0\) has \d.*; use at"):
        draw_positives(sets, NAMES, shots=20, seed=1)
    with pytest.raises(UserError, match="shots must be 1 or more"):
        draw_positives(sets, NAMES, shots=0, seed=1)


@pytest.mark.parametrize("n", [6, 11, 60])
def test_other_folds_always_have_images_of_a_class_and_others(n: int) -> None:
    for seed in range(10):
        sets = torch.from_numpy(sets_of(n, seed))
        several = sets[:, (sets.sum(dim=0) > 1) & ((~sets).sum(dim=0) > 1)]
        fold = positive_folds(several, seed=seed)
        assert len(fold) == n
        for k in range(int(fold.max()) + 1):
            part = several[fold != k]
            assert part.any(dim=0).all()
            assert not part.all(dim=0).any()


def test_folds_have_alike_many_images_of_each_class() -> None:
    sets = torch.from_numpy(sets_of(200, 5))
    fold = positive_folds(sets)
    per_fold = torch.stack([sets[fold == k].sum(dim=0) for k in range(5)])
    assert int((per_fold.max(dim=0).values - per_fold.min(dim=0).values).max()) <= 3


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = sets_of(50, 7)
    scores = np.round(rng.normal(size=(50, 4)) + truth, 1)  # with equal scores
    predicted = scores > 0.8
    got = average_precisions(torch.from_numpy(scores), torch.from_numpy(truth))
    assert np.allclose(got, average_precision_score(truth, scores, average=None))
    p, r, f1 = precision_recall_f1(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert np.allclose(p, precision_score(truth, predicted, average=None))
    assert np.allclose(r, recall_score(truth, predicted, average=None))
    assert np.allclose(f1, f1_score(truth, predicted, average=None))
    micro = micro_f1(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert math.isclose(micro, f1_score(truth, predicted, average="micro"))


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    assert math.isnan(average_precision(torch.rand(5), torch.zeros(5, dtype=torch.bool)))
    assert mean_known([math.nan, 0.5, 1.0]) == 0.75


def loss(slope: float, shift: float, scores: Tensor, truth: Tensor) -> float:
    """Platt's: the log-loss under targets that are not quite 0 and 1."""
    n = int(truth.sum())
    target = torch.where(truth, (n + 1) / (n + 2), 1 / (len(truth) - n + 2)).double()
    p = torch.sigmoid(slope * scores + shift)
    return float(-(target * p.log() + (1 - target) * (1 - p).log()).mean())


def test_a_rule_has_the_best_sigmoid_and_the_threshold_of_the_best_f1() -> None:
    truth = torch.from_numpy(sets_of(25, 2))
    scores = (torch.randn(25, 4, generator=torch.Generator().manual_seed(3)) + 1.5 * truth).double()
    rule = LabelRule.found_on(scores, truth, 0.5)
    labels = rule.labels(rule.probabilities(scores))
    for k in range(4):
        slope, shift, s, y = rule.slopes[k], rule.shifts[k], scores[:, k], truth[:, k]
        lowest = loss(slope, shift, s, y)
        for d in (-0.03, 0.03):
            assert lowest < loss(slope + d, shift, s, y)
            assert lowest < loss(slope, shift + d, s, y)
        best = max(f1_score(y, s >= cut) for cut in s.tolist())
        assert math.isclose(f1_score(y, labels[:, k]), best)


def test_a_rule_keeps_the_order_of_scores_that_say_the_opposite() -> None:
    truth = torch.tensor([[True], [True], [False], [False]])
    rule = LabelRule.found_on(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), truth, 0.5)
    p = rule.probabilities(torch.tensor([[0.0], [3.0]])).flatten()
    assert p[0] < p[1]


def test_a_result_names_map_and_is_of_a_setting_of_its_own(store: FeatureStore) -> None:
    result = evaluate(store, "linear-probe", shots=4, seed=2)
    fitted = fit_labels(store, "linear-probe", shots=4, seed=2)
    logits = fitted.classifier.logits(torch.from_numpy(store.features("test", unit=False)))
    truth = store.split("test").label_sets
    assert math.isclose(result.accuracy, average_precision_score(truth, logits.numpy()))
    assert result.accuracies["mAP"] == result.per_class_accuracy == result.accuracy
    assert result.setting == "multi-label"
    assert (result.shots, result.seed, result.tune, result.n_views) == (4, 2, "cv", 1)
    assert result.by_class is not None
    assert result.by_class["test images"] == truth.sum(axis=0).tolist()
    assert fitted.rule is not None
    predicted = fitted.rule.labels(fitted.rule.probabilities(logits)).numpy()
    assert result.by_class["F1"] == pytest.approx(f1_score(truth, predicted, average=None))
    assert math.isclose(result.accuracies["macro F1"], f1_score(truth, predicted, average="macro"))
    assert math.isclose(result.accuracies["micro F1"], f1_score(truth, predicted, average="micro"))
    assert Result.from_json(result.to_json()) == result


def test_the_test_split_has_no_say(tmp_path: Path, store: FeatureStore) -> None:
    other = write_label_store(tmp_path / "other.h5", sets=sets_of(80, 11))
    one, two = (fit_labels(s, "linear-probe", shots=4) for s in (store, other))
    assert one.method == two.method
    assert one.rule == two.rule
    assert evaluate(store, "zero-shot").accuracy != (evaluate(other, "zero-shot").accuracy)


def test_tuning_takes_the_highest_map_of_held_out_images(store: FeatureStore) -> None:
    grid = [
        fit_labels(store, "linear-probe", shots=6, fixed={"C": c}).rule
        for c in LinearProbe.grid["C"]
    ]
    best = fit_labels(store, "linear-probe", shots=6).rule
    assert best is not None
    assert best.mean_average_precision == max(
        one.mean_average_precision for one in grid if one is not None
    )


def test_without_held_out_images_there_is_map_alone(tmp_path: Path, store: FeatureStore) -> None:
    for name, shots in (("zero-shot", 4), ("linear-probe", 1)):
        result = evaluate(store, name, shots=shots)
        assert set(result.accuracies) == {"mAP"}
        assert result.shots == (0 if name == "zero-shot" else 1)
        with pytest.raises(UserError, match="give two shots or more"):
            fit_and_save(store, name, tmp_path / "a.safetensors", shots=shots)


@pytest.mark.parametrize(
    ("method", "asked", "message"),
    [
        ("gda", {}, "gda takes classes to exclude one another.*use zero-shot, nearest-mean,"),
        ("ridge", {"tune": "val"}, "tuning by val is for one label each; leave it out"),
        ("ridge", {"imbalance": "step:2"}, "imbalance step:2 is for one label each"),
        ("ridge", {"setting": "base-to-new"}, "the setting base-to-new is for one label each"),
        ("ridge", {"blend": 0.5}, "blend 0.5 is for one label each"),
        ("ridge", {"shots": 90}, "90 train images of every class are needed"),
    ],
)
def test_what_is_of_one_label_each_is_refused(
    store: FeatureStore, method: str, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(store, method, **{"shots": 4, **asked})  # type: ignore[arg-type]


def test_an_adapter_gives_the_labels_that_were_tested(tmp_path: Path, store: FeatureStore) -> None:
    path = tmp_path / "a.safetensors"
    saved, result = fit_and_save(store, "ridge", path, shots=6)
    assert "several labels per image, mAP" in saved.summary()
    adapter = load_adapter(path)
    assert (adapter.format, adapter.label_rule) == (4, saved.label_rule)
    rule, described = saved.label_rule, describe(adapter)
    assert rule is not None
    assert f"  mAP: {100 * rule.mean_average_precision:.1f} %" in described
    assert f"  a label from: {NAMES[0]} {100 * rule.thresholds[0]:.1f} %, {NAMES[1]} " in described
    assert "none: there were no labeled images" not in described
    found = list(StoredImages(adapter, store, "test").predictions())
    truth = store.split("test").label_sets
    predicted = np.array([[name in (one.labels or ()) for name in NAMES] for one in found])
    assert result is not None
    f1 = f1_score(truth, predicted, average="micro")
    assert math.isclose(f1, result.accuracies["micro F1"])
    for one in found:
        assert one.label == ";".join(one.labels or ())
        p = dict(zip(one.classes, one.probabilities, strict=True))
        assert one.label_probabilities == tuple(p[name] for name in one.labels or ())


def test_a_rule_of_other_classes_is_damage(tmp_path: Path, store: FeatureStore) -> None:
    path = tmp_path / "a.safetensors"
    saved, _ = fit_and_save(store, "nearest-mean", path, shots=4)
    card = saved.card()
    card["label_rule"]["thresholds"].pop()
    write_adapter(path, card, saved.tensors)
    with pytest.raises(UserError, match=r"label_rule.thresholds: expected 4 entries.*got 3"):
        load_adapter(path)


def test_the_commands_work_from_fit_to_predict(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "ridge", "--shots", "4", "--save", "a.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "multi-label" in shown
    assert " mAP " in shown
    assert "average precision" in shown  # of each class
    command = ["predict", "a.safetensors", "--store", str(store.path), "--split", "test"]
    assert main([*command, "--format", "jsonl"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert len(first["label_probabilities"]) == len([x for x in first["label"].split(";") if x])
    assert main([*command, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("path,label,confidence,label_probabilities,class_1,")
    assert main([*command, "--min-confidence", "0.5"]) == 2
    assert "--min-confidence is for images of one label" in capsys.readouterr().err
    assert main(["export", "a.safetensors", "--to", "open_clip"]) == 2
    assert "gives an image several labels; export it with --to onnx" in capsys.readouterr().err
    assert main(["fit"]) == 2
    assert "stack takes classes to exclude one another" in capsys.readouterr().err


def test_a_benchmark_runs_what_it_planned_and_leaves_out_what_cannot_be(
    store: FeatureStore, tmp_path: Path
) -> None:
    bench = Bench(store=store.path.parent.parent, methods=ALL, shots=(4,), seeds=(1,))
    planned = plan(bench)
    names = {cell.run.method for cell in planned.cells}
    assert names == {"zero-shot", "nearest-mean", "tip-adapter", "ridge", "linear-probe"}
    results: list[Run] = []
    for cell in planned.cells:
        # Raises where the run is not the one planned.
        (result,), _ = Attempt(tmp_path, predictions=True)([cell])
        assert isinstance(result, Result)
        results.append(result)
    shown = tables.text(mean_table(results))
    assert "mAP" in shown
    assert "H" not in shown.split()
