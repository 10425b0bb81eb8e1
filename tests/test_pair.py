import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.extraction.store_writer import create
from cache.importing.import_store import import_file
from cache.location import pair_names, store_path
from cache.models.loading import load
from cache.pair import EVEN, Pair, found, paired
from cache.store import FeatureStore
from cli import main
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.classifiers import put_together
from fewshot.adapters.export.exporting import export
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.adapters.opened_adapter import open_adapter
from fewshot.adapters.predict import predict
from fewshot.adapters.stored_images import StoredImages
from fewshot.adapters.stored_images import opened as opened_for
from fewshot.bench.benchmark import run
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.cross_dataset import transfer
from fewshot.domain_adaptation import adapt
from fewshot.evaluation import evaluate
from fewshot.fitted import Fitted
from fewshot.fitting import fit
from fewshot.new_classes import base_to_new
from fewshot.pair_weight import WEIGHTS
from fewshot.results.log import Result
from fewshot.store_features import query
from tests.small_stores import DIM, NAMES, write_store


def opened(root: Path, seeds: tuple[int, int] = (0, 1), n_views: int = 0) -> Pair:
    """The same images by two models, each with features of its own."""
    stores = [
        FeatureStore.open(write_store(root, "toys", model, seed=seed, n_views=n_views))
        for model, seed in zip("ab", seeds, strict=True)
    ]
    return paired(*stores)


def test_the_cosine_of_two_images_is_the_weighted_mean_of_both_backbones(tmp_path: Path) -> None:
    pair = opened(tmp_path, n_views=2).at(0.3)
    features = pair.features("train", [5, 2, 5])
    first, second = (
        FeatureStore.open(tmp_path / "toys" / f"{model}.h5").split("train") for model in "ab"
    )
    a, b = (split.features([5, 2, 5]) for split in (first, second))
    np.testing.assert_allclose(features @ features.T, 0.3 * a @ a.T + 0.7 * b @ b.T, atol=1e-6)
    norms = second.norms([5, 2, 5])[:, None]
    np.testing.assert_allclose(
        pair.features("train", [5, 2, 5], unit=False), norms * features, rtol=1e-5
    )
    views = pair.split("train").views([5, 2])
    expected = 0.3**0.5 * first.views([5, 2]), 0.7**0.5 * second.views([5, 2])
    np.testing.assert_allclose(views, np.concatenate(expected, axis=-1), atol=1e-6)
    assert pair.dim == features.shape[1] == 2 * DIM


@pytest.mark.parametrize("weight", [None, 0.0, 0.9])
def test_zero_shot_logits_are_those_of_the_second_model(
    tmp_path: Path, weight: float | None
) -> None:
    pair = opened(tmp_path)
    alone = FeatureStore.open(pair.path)
    logits = []
    for store in (alone, pair if weight is None else pair.at(weight)):
        fitted = fit(store, "zero-shot")
        logits.append(fitted.classifier.logits(query(store.split("test"), fitted.method)))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tip-adapter", "taskres", "proker", "transclip"])
def test_with_all_weight_on_the_second_model_a_method_is_what_it_is_on_that_alone(
    tmp_path: Path, name: str
) -> None:
    pair = opened(tmp_path)
    alone = FeatureStore.open(pair.path)
    results = [evaluate(store, name, shots=2) for store in (alone, pair.at(0.0))]
    assert results[0].accuracy == results[1].accuracy
    assert results[1].measures["pair_weight"] == 0.0


@pytest.mark.parametrize("name", ["gda", "stack", "ueo"])
def test_a_result_of_a_pair_names_both_models_and_survives_its_line(
    tmp_path: Path, name: str
) -> None:
    result = evaluate(opened(tmp_path), name, shots=1)
    assert result.model == "a+b"
    assert Result.from_json(result.to_json()) == result


def weight_of(fitted: Fitted) -> float | None:
    assert isinstance(fitted.store, Pair)
    return fitted.store.weight


def write_noise(path: Path, like: FeatureStore) -> FeatureStore:
    """A store of the same images whose features and text say nothing of the classes."""
    rng = np.random.default_rng(3)
    identity = {"dataset": {"name": "toys"}, "model": {"name": "noise", "logit_scale": 50.0}}
    with create(path, identity=identity, classnames=NAMES, versions={}) as writer:
        for split in like.splits:
            labels = like.labels(split)
            writer.split(split, labels=labels, paths=like.paths(split), dim=DIM)
            writer.write(split, 0, rng.normal(size=(len(labels), DIM)))
        writer.text("templates", rng.normal(size=(len(NAMES), DIM)), range(len(NAMES)), NAMES)
    return FeatureStore.open(path)


def test_the_weight_goes_to_the_better_backbone_and_into_the_result(tmp_path: Path) -> None:
    good = opened(tmp_path).beside
    noise = write_noise(tmp_path / "noise.h5", good)
    weights = [
        evaluate(pair, "gda", shots=8, blend=1.0).measures["pair_weight"]
        for pair in (paired(noise, good), paired(good, noise))
    ]
    assert weights[0] < EVEN < weights[1]
    assert set(weights) <= set(WEIGHTS)


def test_what_is_not_tuned_keeps_even_weights_and_a_weight_that_was_set_stays(
    tmp_path: Path,
) -> None:
    pair = opened(tmp_path)
    for asked in ({"shots": 1}, {"tune": "none", "shots": 4}):
        assert weight_of(fit(pair, "gda", **asked)) == EVEN
    assert weight_of(fit(pair, "zero-shot")) == EVEN
    assert weight_of(fit(pair.at(0.1), "gda", shots=4)) == 0.1
    with pytest.raises(UserError, match="from 0 to below 1; got 1"):
        pair.at(1.0)


def test_stores_of_the_same_names_with_other_contents_are_no_pair(tmp_path: Path) -> None:
    first, second = (FeatureStore.open(write_store(tmp_path, "toys", n)) for n in "ab")
    paired(first, second)  # what they say of contents nobody knows, and nothing else differs
    a, b = (
        replace(store, versions={"images": digest})
        for store, digest in ((first, "1"), (second, "2"))
    )
    with pytest.raises(UserError, match="they differ in the contents of their images"):
        paired(a, b)


def test_two_imported_stores_are_a_pair_that_is_saved_and_predicts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"text_features": rng.normal(size=(3, 8))}
    for split in ("train", "test"):
        arrays[f"{split}_features"] = rng.normal(size=(12, 8))
        arrays[f"{split}_labels"] = np.arange(12) % 3
    np.savez(tmp_path / "f.npz", **arrays)
    a, b = (import_file(tmp_path / "f.npz", "toys", model, tmp_path) for model in "ab")
    pair = paired(FeatureStore.open(a), FeatureStore.open(b))
    adapter, result = fit_and_save(pair, "gda", tmp_path / "a.safetensors", shots=2, tune="none")
    assert adapter.beside is not None
    assert adapter.preprocessing == adapter.beside.preprocessing == {}
    found = [one.label for one in StoredImages(adapter, pair.at(EVEN), "test").predictions()]
    right = [name == f"class {k}" for name, k in zip(found, arrays["test_labels"], strict=True)]
    assert result is not None
    assert result.accuracy == np.mean(right)


def test_stores_of_different_images_are_no_pair(tmp_path: Path) -> None:
    first = FeatureStore.open(write_store(tmp_path, "toys", "a"))
    others = {
        "their classes": {"names": (*NAMES[:3], "eel")},
        "their splits": {"splits": ("train", "test")},
        "the labels of their test images": {"test_labels": [0] * 60},
        "the paths of their test images": {"test_labels": [0]},
        "their augmented views": {"n_views": 1},
    }
    for what, different in others.items():
        second = FeatureStore.open(write_store(tmp_path, "toys", "b", **different))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"are no pair: they differ in {what}; extract both"):
            paired(first, second)


def test_two_models_are_a_pair_and_a_file_with_a_plus_in_its_name_is_none(tmp_path: Path) -> None:
    (tmp_path / "x+y.pt").touch()
    assert pair_names("timm:x+ViT-B-16,openai") == ("timm:x", "ViT-B-16/openai")
    assert pair_names("tiny") is pair_names(f"RN50@{tmp_path}/x+y.pt") is None
    for bad in ("a+", "+b", "a+b+c"):
        with pytest.raises(UserError, match=r"a pair is two models with \+ between"):
            pair_names(bad)


SETTINGS: dict[str, Callable[[FeatureStore], Result]] = {
    "base-to-new": lambda pair: base_to_new(pair, "gda", shots=2),
    "generalized": lambda pair: evaluate(pair, "gda", setting="generalized", shots=2),
    "open-set": lambda pair: evaluate(pair, "gda", known=3, shots=2),
    "cross-dataset": lambda pair: transfer(pair, [pair], "gda", shots=2)[0],
    "domain-adaptation": lambda pair: adapt(pair, pair, "gda", shots=2),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_in_every_setting_the_few_shots_choose_the_weight_and_what_is_tested_has_it(
    tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot.pair_weight.best", lambda scores, own: 0.9)
    pair = opened(tmp_path)
    chosen, by_hand, even = (SETTINGS[setting](one) for one in (pair, pair.at(0.9), pair.at(EVEN)))
    assert chosen.measures == {**by_hand.measures, "pair_weight": 0.9}
    assert chosen.accuracies == by_hand.accuracies
    assert chosen.accuracy == by_hand.accuracy != even.accuracy


def test_new_classes_images_have_no_say_in_the_weight_that_their_features_are_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Generating(Exception):  # noqa: N818, it is no error
        pass

    def generate(words: str, store: FeatureStore, *given: Any, **more: Any) -> None:
        assert isinstance(store, Pair)
        raise Generating(store.weight)

    monkeypatch.setattr("fewshot.synthesized_fitting.material", generate)
    pair = opened(tmp_path)
    asked: Any = {"setting": "base-to-new", "shots": 4}
    with pytest.raises(Generating) as reached:
        fit(pair, "gda", synthesize="ship", **asked)
    assert reached.value.args == (weight_of(fit(pair, "gda", classes=range(2), **asked)),)


def run_pair(root: Path, *words: str, model: str = "a+b") -> int:
    common = ["--store", str(root), "--results", str(root / "r.jsonl"), "--json"]
    return main(["fit", "gda", "--dataset", "toys", "--model", model, *common, *words])


def test_the_command_transfers_a_pair_and_takes_its_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tmp_path)
    for model, seed in zip("ab", (0, 1), strict=True):
        write_store(tmp_path, "others", model, seed=seed)
    for words in (["--source", "others"], ["--test-on", "others"]):
        assert run_pair(tmp_path, "--shots", "2", *words) == 0
        found = Result.from_json(capsys.readouterr().out)
        assert found.model == "a+b"
        assert found.measures["pair_weight"] in WEIGHTS
    assert run_pair(tmp_path, "--shots", "2", "--pair-weight", "0.2") == 0
    assert Result.from_json(capsys.readouterr().out).measures["pair_weight"] == 0.2
    for model, weight, message in (
        ("a+b", "1", "a pair's weight must be from 0 to below 1; got 1.0"),
        ("a", "0.5", "--pair-weight shares out the cosine between two models"),
    ):
        assert run_pair(tmp_path, "--pair-weight", weight, model=model) == 2
        assert message in capsys.readouterr().err


def test_one_stores_file_is_no_pair(tmp_path: Path) -> None:
    path = opened(tmp_path).path
    with pytest.raises(UserError, match=r"a pair is of two stores, and .*b.h5 is one"):
        found(path, None, "a+b")


def test_without_a_dataset_a_store_that_learns_and_is_tested_comes_before_newer_ones(
    tmp_path: Path,
) -> None:
    for age, (dataset, splits) in enumerate(
        [("old", ("train", "test")), ("whole", ("train", "test")), ("all", ("train",))]
    ):
        path = write_store(tmp_path, dataset, splits=splits)
        os.utime(path, (age, age))
    store, chosen = found(tmp_path, None, "toy")
    assert (store.dataset, chosen) == ("whole", True)
    assert found(tmp_path, "all", None)[0].dataset == "all"
    (tmp_path / "old" / "toy.h5").unlink()
    (tmp_path / "whole" / "toy.h5").unlink()
    assert found(tmp_path, None, None)[0].dataset == "all"


def test_a_pairs_adapter_classifies_images_by_both_models(
    tmp_path: Path, draw_photos: Callable[..., Path], random_vit: Path
) -> None:
    photos, model = draw_photos(), f"local-dir:{random_vit}+tiny"
    where = ["--store", str(tmp_path / "f")]
    of = ["--dataset", str(photos), "--model", model]
    assert main(["extract", *of, "--all-train", *where, "--device", "cpu"]) == 0
    path = tmp_path / "a.safetensors"
    of[1] = "photos-all"
    fit_it = ["fit", "gda", *of, *where, "--results", str(tmp_path / "r.jsonl")]
    assert main([*fit_it, "--shots", "2", "--pair-weight", "0.3", "--save", str(path)]) == 0
    adapter = load_adapter(path)
    assert adapter.model_name == model
    assert adapter.beside is not None
    first, second = (load(name, device="cpu") for name in pair_names(model) or ())
    files = sorted(photos.rglob("*.jpg"))[:5]
    vectors = []
    for encoder in (first, second):
        crops = [encoder.preprocess.center(Image.open(file).convert("RGB")) for file in files]
        vectors.append(normalize(encoder.encode_images(torch.stack(crops)), dim=1))
    features = torch.cat([0.3**0.5 * vectors[0], 0.7**0.5 * vectors[1]], dim=1)
    assert adapter.classifier is not None
    logits = put_together(adapter.classifier, adapter.tensors).logits(features)
    expected = torch.softmax(logits.double() / adapter.calibration.temperature, dim=1)
    got = predict(path, files, top=3, device="cpu")
    for one, row in zip(got, expected, strict=True):
        ours = dict(zip(one.classes, one.probabilities, strict=True))
        values = torch.tensor([ours[name] for name in adapter.classnames], dtype=torch.float64)
        torch.testing.assert_close(values, row, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="an export takes one crop of an image, and the two models"):
        export(path, "onnx")
    stores = [store_path(tmp_path / "f", "photos-all", name) for name in pair_names(model) or ()]
    both = opened_for(adapter, stores[::-1])
    stored = {one.path: one for one in StoredImages(adapter, both).predictions()}
    for one in got:
        again = stored[Path(one.path).relative_to(photos).as_posix()]
        assert again.classes == one.classes
        torch.testing.assert_close(again.probabilities, one.probabilities, atol=2e-3, rtol=1e-2)
    for files, said in (
        (stores[1:], r"local-dir:.*, so --store must be given twice, .*; got 1 store"),
        (stores[1:] * 2, "another model's features mean something else"),
    ):
        with pytest.raises(UserError, match=said):
            StoredImages(adapter, opened_for(adapter, files))
    with pytest.raises(UserError, match=r"this adapter is of local-dir:.*, and .* is not"):
        StoredImages(adapter, FeatureStore.open(stores[1]))
    with pytest.raises(UserError, match=r"this adapter is of tiny, and .* is not"):
        StoredImages(replace(adapter, beside=None), both)
    with pytest.raises(UserError, match="so --store must be given once; got 2 stores"):
        opened_for(replace(adapter, beside=None), stores)
    with pytest.raises(UserError, match="is one model; give --model the like of it"):
        open_adapter(path, model="ViT-B-32/openai")
    swapped = "+".join(reversed(pair_names(model) or ()))
    with pytest.raises(UserError, match="another model's features mean something else"):
        open_adapter(path, model=swapped, device="cpu")


def test_a_benchmark_runs_a_pair_beside_its_models(tmp_path: Path) -> None:
    opened(tmp_path / "f")
    write_store(tmp_path / "f", "lone", "b")
    asked: dict[str, Any] = {
        "models": ("a", "b", "a+b"), "shots": (2,), "store": tmp_path / "f",
        "out": tmp_path / "out", "seeds": (1,),
    }  # fmt: skip
    bench = Bench(methods=("gda", "ridge"), datasets=("toys",), **asked)
    made = plan(bench)
    assert {cell.run.model for cell in made.cells} == {"a", "b", "a+b"}
    outcome = run(bench, made, lambda line: None)
    assert not outcome.failures
    of_pair = [one for one in outcome.runs if isinstance(one, Result) and one.model == "a+b"]
    alone = [evaluate(opened(tmp_path / "g"), name, shots=2).accuracy for name in ("gda", "ridge")]
    assert [one.accuracy for one in of_pair] == alone
    assert {cell.run.dataset for cell in plan(replace(bench, datasets=("all",))).cells} == {
        "toys", "lone",
    }  # fmt: skip
    with pytest.raises(UserError, match="coop is trained through one model, and a"):
        plan(Bench(methods=("coop",), datasets=("toys",), **{**asked, "models": ("a+b",)}))
