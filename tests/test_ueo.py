import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cache.arrays.image_tower import ImageTower
from cache.datasets.resolving import resolve_folder
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.loading import load
from cache.pair import paired
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from fewshot import SupportSet, ZeroShot, evaluate, fit
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.export.onnx_graph import graph_of
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.adapters.stored_images import StoredImages
from fewshot.methods import UEO
from fewshot.methods.ueo import Residual
from fewshot.parts.universal_entropy import objective
from fewshot.text import Text
from tests.toys import vectors

SCALE = 10.0
Array = NDArray[np.float64]


def task(n: int = 40, known: int = 3, unknown: int = 2) -> tuple[Tensor, Text]:
    """Unlabeled images of known and unknown classes, and the known ones' text."""
    centers = vectors(0, known + unknown, 8)
    images = normalize(centers[torch.arange(n) % len(centers)] + 0.6 * vectors(1, n, 8))
    return images, Text(normalize(centers[:known] + 0.5 * vectors(2, known, 8)))


def loss(text: Array, images: Array, weights: Array, marginal: float) -> float:
    """The objective image by image, of class texts of any length."""
    entropy = total = inverse = 0.0
    average = np.zeros(len(text))
    for f, w in zip(images, weights, strict=True):
        z = np.array([SCALE * f @ t / math.sqrt(t @ t) for t in text])
        p = np.exp(z) / np.exp(z).sum()
        entropy += w * -sum(one * math.log(one + 1e-5) for one in p)
        average += p / w
        total, inverse = total + w, inverse + 1 / w
    q = average / inverse
    return float(entropy / total + marginal * sum(one * math.log(one + 1e-5) for one in q))


@pytest.mark.parametrize("marginal", [0.0, 1.0, 2.5])
def test_the_objective_is_that_of_the_definition_image_by_image(marginal: float) -> None:
    images, text = task()
    weights = torch.rand(len(images), generator=torch.Generator().manual_seed(3)) + 0.1
    got = objective(SCALE * images @ text.features.T, weights, marginal).loss
    expected = loss(
        text.features.double().numpy(), images.double().numpy(), weights.numpy(), marginal
    )
    assert float(got) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("residual", ["shared", "class"])
def test_a_step_is_against_the_numerical_gradient(residual: Residual) -> None:
    images, text = task()
    method = UEO(
        residual=residual, lr=0.02, epochs=1, batch_size=100, marginal=1.5, logit_scale=SCALE
    )
    got = method.fit_unlabeled(images, text).weight.double().numpy() / SCALE
    x, t = images.double().numpy(), text.features.double().numpy()
    certainty = np.exp(SCALE * x @ t.T)
    weights = (certainty / certainty.sum(axis=1, keepdims=True)).max(axis=1)
    gradient, h = np.zeros_like(t), 1e-6
    for k, d in np.ndindex(*t.shape):
        shift = np.zeros_like(t)
        shift[(k, d) if residual == "class" else (slice(None), d)] = h
        sides = (loss(t + shift, x, weights, 1.5), loss(t - shift, x, weights, 1.5))
        gradient[k, d] = (sides[0] - sides[1]) / (2 * h)
    moved = t - 0.02 * gradient
    np.testing.assert_allclose(got, moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(got - t).max() > 1e-4


@pytest.mark.parametrize("residual", ["shared", "class"])
def test_many_steps_are_those_of_autograd(residual: Residual) -> None:
    images, text = task()
    lr, epochs = 2.0, 6  # long steps, so that the moved texts are far from unit length
    method = UEO(residual=residual, lr=lr, epochs=epochs, batch_size=100, logit_scale=SCALE)
    t = text.features.double()
    weights = torch.softmax(SCALE * images.double() @ t.T, dim=1).amax(dim=1)
    x = torch.zeros_like(t if residual == "class" else t[:1]).requires_grad_()
    for step in range(epochs):
        p = torch.softmax(SCALE * images.double() @ normalize(t + x).T, dim=1)
        entropy = -(p * (p + 1e-5).log()).sum(dim=1)
        q = (p / weights[:, None]).sum(dim=0) / (1 / weights).sum()
        value = (weights * entropy).sum() / weights.sum() + 1.5 * (q * (q + 1e-5).log()).sum()
        (gradient,) = torch.autograd.grad(value, x)
        rate = lr * (1 + math.cos(math.pi * step / epochs)) / 2
        x = (x - rate * gradient).detach().requires_grad_()
    assert float(((t + x).norm(dim=1) - 1).abs().max().detach()) > 0.1
    expected = SCALE * normalize(t + x.detach())
    got = method.fit_unlabeled(images, text).weight.double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_equal_weights_make_it_information_maximization() -> None:
    images, text = task()
    logits = SCALE * images @ text.features.T
    p = torch.softmax(logits, dim=1)
    entropy = -(p * (p + 1e-5).log()).sum(dim=1).mean()
    of_mean = -(p.mean(dim=0) * (p.mean(dim=0) + 1e-5).log()).sum()
    for weight in (1.0, 0.2):
        got = objective(logits, torch.full((len(images),), weight)).loss
        torch.testing.assert_close(got, entropy - of_mean)
    even, none = UEO(weight_temperature=1e6), UEO(weighting="none")
    torch.testing.assert_close(
        even.fit_unlabeled(images, text).weight, none.fit_unlabeled(images, text).weight
    )


def test_the_surer_the_weight_the_less_an_image_counts_in_the_average() -> None:
    p = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    even, uneven = (objective(p, torch.tensor(w), 1.0).loss for w in ([1.0, 1.0], [1.0, 1e-3]))
    # The average then is almost the unsure image's own, whose entropy is small.
    assert float(even) < float(uneven)
    assert float(uneven) == pytest.approx(0.0, abs=5e-3)


def test_no_epochs_are_zero_shot() -> None:
    images, text = task()
    support = SupportSet(images, torch.arange(len(images)) % 3, 3)
    for method in (UEO(epochs=0), UEO(lr=1e-12)):
        got = method.fit(support, text).logits(images)
        expected = ZeroShot().fit(support, text).logits(images)
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


def tower(width: int = 12, dim: int = 8) -> ImageTower:
    """Last layers that scale and shift, one scale being 0."""
    drawn = np.random.default_rng(5)
    scale, shift = drawn.normal(size=(2, width)).astype(np.float32)
    scale[0] = 0
    return ImageTower(scale, shift, drawn.normal(size=(width, dim)).astype(np.float32))


@pytest.mark.parametrize("marginal", [0.0, 1.5])
def test_the_norm_takes_the_steps_of_autograd(marginal: float) -> None:
    pooled, text, layers = vectors(1, 40, 12) * 3, task()[1], tower()
    lr, epochs = 0.5, 6
    method = UEO(
        learn="norm", lr=lr, epochs=epochs, batch_size=100, marginal=marginal, logit_scale=SCALE
    )
    got = method.fit_pooled(pooled, layers, text)
    t, x = text.features.double(), pooled.double()
    projection = torch.from_numpy(layers.projection).double()
    scale, shift = (torch.tensor(v).double().requires_grad_() for v in (layers.scale, layers.shift))
    start, weights = scale.detach().clone(), None
    for step in range(epochs):
        p = torch.softmax(SCALE * normalize((scale * x + shift) @ projection) @ t.T, dim=1)
        weights = p.detach().amax(dim=1) if weights is None else weights
        entropy = -(p * (p + 1e-5).log()).sum(dim=1)
        q = (p / weights[:, None]).sum(dim=0) / (1 / weights).sum()
        value = (weights * entropy).sum() / weights.sum() + marginal * (q * (q + 1e-5).log()).sum()
        rate = lr * (1 + math.cos(math.pi * step / epochs)) / 2
        gradients = torch.autograd.grad(value, (scale, shift))
        scale, shift = (
            (old - rate * gradient).detach().requires_grad_()
            for old, gradient in zip((scale, shift), gradients, strict=True)
        )
    assert float((scale.detach() - start).abs().max()) > 0.02
    torch.testing.assert_close(got.scale.double(), scale.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.shift.double(), shift.detach(), rtol=0, atol=1e-5)
    expected = SCALE * normalize((scale * x + shift) @ projection).detach() @ t.T
    torch.testing.assert_close(got.logits(pooled).double(), expected, rtol=0, atol=1e-4)


def test_the_norm_of_a_store_starts_as_zero_shot_and_ends_elsewhere(
    random_vit: Path, draw_photos: Callable[..., Path], tmp_path: Path
) -> None:
    photos, encoder = resolve_folder(draw_photos(8)), load(f"local-dir:{random_vit}", device="cpu")
    plain, whole = tmp_path / "plain.h5", tmp_path / "whole.h5"
    for path in (plain, whole):
        prompts = prompt_sets(photos.classnames, photos.templates)
        recipe = Recipe(prompts, pre_projection=path is whole)
        extract(photos, encoder, recipe, path, bank=tmp_path / "bank.sqlite")
    store = FeatureStore.open(whole)
    test = store.split("test")
    expected = fit(store, "zero-shot").classifier.logits(torch.from_numpy(test.features()))
    for epochs in (0, 3):
        norm = fit(store, "ueo", fixed={"learn": "norm", "epochs": epochs, "lr": 10.0}).classifier
        moved = (norm.logits(torch.from_numpy(test.pooled())) - expected).abs().max()
        assert float(moved) > 0.3 if epochs else float(moved) < 0.01
    result = evaluate(store, "ueo", fixed={"learn": "norm"}, known=2)
    assert result.setting == "open-set"
    assert result.measures["trained_parameters"] == 128
    with pytest.raises(UserError, match=r"no features before the projection; run .*--pre-proj"):
        evaluate(plain, "ueo", fixed={"learn": "norm"})
    path = tmp_path / "a.safetensors"
    adapter, _ = fit_and_save(store, "ueo", path, fixed={"learn": "norm", "epochs": 3, "lr": 10.0})
    predictor = with_encoder(load_adapter(path), encoder)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = predictor.logits(predictor.features(pixels))
    assert not torch.allclose(logits, fit(store, "zero-shot").classifier.logits(
        normalize(encoder.encode_images(pixels))), atol=0.1)  # fmt: skip
    with torch.no_grad():
        graph, _ = graph_of(adapter, encoder)(pixels)
    torch.testing.assert_close(graph, logits, rtol=1e-4, atol=1e-3)
    with pytest.raises(UserError, match=r"classifies pooled images, and there are none"):
        StoredImages(adapter, FeatureStore.open(plain))
    with pytest.raises(UserError, match="a pair of models has no pooled images"):
        fit(paired(store, store), "ueo", fixed={"learn": "norm"})


def test_an_oracle_that_knows_the_unknown_images_learns_otherwise() -> None:
    images, text = task()
    weights = torch.where(torch.arange(len(images)) % 5 < 3, 1.0, 1e-3)
    method = UEO(logit_scale=SCALE)
    oracle = method.fit_weighted(images, text, weights)
    assert (oracle.weight - method.fit_unlabeled(images, text).weight).abs().max() > 1e-3
    method, pooled = replace(method, learn="norm", lr=1.0), 3 * vectors(1, len(images), 12)
    of_norm = method.fit_pooled(pooled, tower(), text, weights)
    assert (of_norm.scale - method.fit_pooled(pooled, tower(), text).scale).abs().max() > 1e-3


def test_the_seed_orders_the_images_and_nothing_else() -> None:
    images, text = task()
    one, same, other = (
        UEO(seed=seed, batch_size=16, logit_scale=SCALE).fit_unlabeled(images, text).weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    whole = [UEO(seed=seed, batch_size=40).fit_unlabeled(images, text).weight for seed in (1, 2)]
    torch.testing.assert_close(*whole)


def test_what_cannot_be_is_refused() -> None:
    images, text = task()
    with pytest.raises(UserError, match="needs two unlabeled images; got 1"):
        UEO().fit_unlabeled(images[:1], text)
    with pytest.raises(UserError, match="needs text features"):
        UEO().fit_unlabeled(images, None)
    with pytest.raises(UserError, match="weight_temperature must be more than 0"):
        UEO(weight_temperature=0.0)
    with pytest.raises(UserError, match="use fit_pooled, or learn=text"):
        UEO(learn="norm").fit_unlabeled(images, text)
    with pytest.raises(UserError, match="learns from features and got pooled images"):
        ZeroShot().fit_pooled(images, tower(), text)
    with pytest.raises(UserError, match="unknown residual"):
        UEO(residual="both")  # type: ignore[arg-type]
