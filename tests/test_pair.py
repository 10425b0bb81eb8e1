from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import UserError
from cache.location import pair_names
from cache.pair import EVEN, Pair, paired
from cache.store import FeatureStore
from cache.store_writer import create
from cli import main
from fewshot.adapters.making import fit_and_save
from fewshot.evaluation import evaluate
from fewshot.fitting import fit, query
from fewshot.pair_weight import WEIGHTS, weighed
from fewshot.results.log import Result
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
        assert weighed(pair, "gda", **asked).weight == EVEN
    assert weighed(pair, "zero-shot").weight == EVEN
    assert weighed(pair.at(0.1), "gda", shots=4).weight == 0.1
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


def test_a_pair_makes_no_adapter_and_no_transfer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = opened(tmp_path / "features")
    with pytest.raises(UserError, match=r"a\+b is a pair; leave --save out"):
        fit_and_save(pair, "gda", tmp_path / "a.safetensors")
    common = ["fit", "gda", "--dataset", "toys", "--model", "a+b"]
    common += ["--store", str(tmp_path / "features"), "--results", str(tmp_path / "r.jsonl")]
    assert main([*common, "--source", "toys"]) == 2
    assert "a pair of models learns and tests one dataset" in capsys.readouterr().err
    assert main([*common, "--shots", "2", "--json"]) == 0
    assert Result.from_json(capsys.readouterr().out).model == "a+b"
