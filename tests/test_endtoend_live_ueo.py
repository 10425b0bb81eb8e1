import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from cache.datasets.resolving import resolve_folder
from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.adapters.trained_adapter import of_trained
from fewshot.commands.method_names import require_method
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.experiment import Trained, run
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.methods.live_ueo import LiveUEO
from tests.naive_prompts import text_around

FAST = LiveUEO(epochs=2, lr=0.2, batch_size=9)


@pytest.fixture
def source(draw_photos: Callable[..., Path]) -> Source:
    return resolve_folder(draw_photos(6))


def context_of(encoder: Encoder) -> Tensor:
    """The embeddings of "a photo of a"."""
    words = encoder.tokenizer(["a photo of a"])[0][1:5]
    found: Tensor = encoder.model.token_embedding(words).detach()
    return found


def cosines(encoder: Encoder, context: Tensor, names: tuple[str, ...], pixels: Tensor) -> Tensor:
    """(B, C) through open_clip's own towers, one prompt of 77 tokens at a time."""
    return normalize(encoder.model.encode_image(pixels)) @ text_around(encoder, context, names).T


def center(encoder: Encoder, source: Source, split: str) -> Tensor:
    items = source.splits[split]
    return torch.stack([encoder.preprocess.center(source.read(item.path)) for item in items])


def trained(encoder: Encoder, source: Source, method: LiveUEO = FAST, **options: Any) -> Trained:
    return run(method, encoder, source, seed=5, **options)


@pytest.mark.parametrize(
    "method", [FAST, replace(FAST, weight_temperature=1.0, marginal=1.5, learn="norms")]
)
def test_its_steps_are_those_of_the_definition_through_open_clips_own_towers(
    encoder: Encoder, source: Source, method: LiveUEO
) -> None:
    names = source.classnames
    context = context_of(encoder).requires_grad_(method.learn != "norms")
    with torch.no_grad():
        before = cosines(encoder, context, names, center(encoder, source, "train"))
    scale = float(encoder.identity["logit_scale"])
    factor = scale if method.weight_temperature == "model" else 1.0
    weights = torch.softmax(factor * before, dim=1).amax(dim=1)
    stock = replace(encoder, model=copy.deepcopy(encoder.model))
    norms = {
        name: p.requires_grad_()
        for name, p in stock.model.named_parameters()
        if name.startswith("visual.") and "ln_" in name
    }
    moving = ([context] if context.requires_grad else []) + list(norms.values())
    items, step = source.splits["train"], 0
    for epoch in range(2):
        draw = torch.Generator().manual_seed(5 * 1_000_003 + epoch)
        order = torch.randperm(len(items), generator=draw)
        for rows in torch.split(order, 9):
            crops = [
                stock.preprocess.view(source.read(items[i].path), (0.5, 1.0), (5, i, epoch))
                for i in rows.tolist()
            ]
            p = torch.softmax(scale * cosines(stock, context, names, torch.stack(crops)), dim=1)
            w = weights[rows]
            sure = sum(float(w[i]) * -(p[i] * (p[i] + 1e-5).log()).sum() for i in range(len(rows)))
            q = sum(p[i] / float(w[i]) for i in range(len(rows))) / float((1 / w).sum())
            assert isinstance(q, Tensor)
            spread = -(q * (q + 1e-5).log()).sum()
            loss = sure / float(w.sum()) - method.marginal * spread
            gradients = torch.autograd.grad(loss, moving)
            steps = 2 * math.ceil(len(items) / 9)
            lr = 0.2 * (1 + math.cos(math.pi * step / steps)) / 2
            with torch.no_grad():
                for parameter, gradient in zip(moving, gradients, strict=True):
                    parameter -= lr * gradient
            step += 1
    got = trained(encoder, source, method).learner.parameters
    assert got.keys() == norms.keys() | ({"context"} if context.requires_grad else set())
    for name, expected in norms.items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=1e-5)
        if name == "visual.ln_post.weight":
            assert (expected - encoder.model.get_parameter(name)).abs().max() > 1e-3
    if context.requires_grad:
        torch.testing.assert_close(got["context"], context, rtol=0, atol=1e-5)
        assert (context - context_of(encoder)).abs().max() > 1e-4


def test_without_a_step_it_is_zero_shot(encoder: Encoder, source: Source) -> None:
    ours = trained(encoder, source, replace(FAST, epochs=0))
    pixels = center(encoder, source, "test")
    assert ours.learner.images is not None
    with torch.no_grad():
        got = ours.learner.logits(ours.learner.images(pixels))
        scale = float(encoder.identity["logit_scale"])
        expected = scale * cosines(encoder, context_of(encoder), source.classnames, pixels)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert (ours.result.setting, ours.result.shots) == ("unsupervised", 0)


def test_labels_of_train_images_have_no_say(encoder: Encoder, source: Source) -> None:
    mixed = [Item(item.path, (item.label + 1) % 3) for item in source.splits["train"]]
    other = replace(source, splits={**source.splits, "train": tuple(mixed)})
    method = replace(FAST, learn="prompt")
    one, two = (trained(encoder, each, method).learner.parameters for each in (source, other))
    assert torch.equal(one["context"], two["context"])


def test_an_open_set_is_trained_on_all_images_and_judged_on_known_and_unknown_ones(
    encoder: Encoder, source: Source
) -> None:
    method = replace(FAST, learn="prompt", lr=1.0)
    ours = trained(encoder, source, method, known=("blue", "red"), score="max-softmax")
    result = ours.result
    assert result.n_support == len(source.splits["train"])
    with torch.no_grad():
        features = ours.clip.model.encode_image(center(encoder, source, "test"))
        p = torch.softmax(ours.learner.logits(features), dim=1)
    labels = np.array([item.label for item in source.splits["test"]])
    known = labels != 1
    right = float((np.array([0, 2])[p.argmax(dim=1).numpy()] == labels)[known].mean())
    area = roc_auc_score(known, p.amax(dim=1).numpy())
    assert result.accuracies["known"] == pytest.approx(right)
    assert result.accuracies["auroc"] == pytest.approx(area)
    assert result.accuracy == pytest.approx(2 * right * area / (right + area) if right else 0)
    assert (result.setting, result.known, result.score) == (
        "open-set", ("blue", "red"), "max-softmax",
    )  # fmt: skip
    with pytest.raises(UserError, match="from few shots and with prompts of its own"):
        run(CoOp(), encoder, source, shots=1, known=2)


def test_a_prompt_alone_learns_from_the_store_and_a_finished_run_is_known_again(
    encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    prompts = prompt_sets(source.classnames, source.templates)
    extract(source, encoder, Recipe(prompts), tmp_path / "s.h5", bank=tmp_path / "b.sqlite")
    store = FeatureStore.open(tmp_path / "s.h5")
    method, path = replace(FAST, learn="prompt"), tmp_path / "c.safetensors"
    shutil.rmtree(source.root)  # no image is looked at
    whole = trained(encoder, source, method, store=store)

    def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
        assert math.isnan(accuracy)

    options = {"store": store, "checkpoint": path}
    first = trained(encoder, source, method, watch=watch, **options)
    again = trained(encoder, source, method, **options)
    for one in (first, again):
        assert torch.equal(one.learner.parameters["context"], whole.learner.parameters["context"])
    assert again.again
    assert first.result.seed == 5


def test_an_adapter_of_it_classifies_as_it_does(encoder: Encoder, source: Source) -> None:
    ours = trained(encoder, source, FAST)
    pixels = center(encoder, source, "test")
    adapter = of_trained(ours, FAST, encoder, source)
    predictor = with_encoder(adapter, encoder)
    assert ours.learner.images is not None
    with torch.no_grad():
        expected = ours.learner.logits(ours.learner.images(pixels))
    got = predictor.logits(predictor.features(pixels))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_a_resnets_shortcuts_keep_their_norms(random_resnet: Path) -> None:
    clip = Clip.of(load(f"local-dir:{random_resnet}", device="cpu"))
    got = FAST.attach(clip, ["cat", "dog"], []).parameters
    assert "visual.layer1.0.bn1.weight" in got
    assert any("downsample" in name for name, _ in clip.model.named_parameters())
    assert not any("downsample" in name for name in got)


def test_what_cannot_be_is_refused(encoder: Encoder, source: Source) -> None:
    one = replace(source, splits={**source.splits, "train": source.splits["train"][:1]})
    with pytest.raises(UserError, match="live-ueo needs two unlabeled images; got 1"):
        trained(encoder, one)
    with pytest.raises(UserError, match="ctx_init must be words"):
        LiveUEO(ctx_init=" ")
    with pytest.raises(UserError, match="weight_temperature must be more than 0"):
        LiveUEO(weight_temperature=0.0)
    gone = tuple(item for item in source.splits["test"] if item.label < 2)
    known_only = replace(source, splits={**source.splits, "test": gone})
    with pytest.raises(UserError, match="photos has no test image of unknown classes"):
        trained(encoder, known_only, replace(FAST, learn="prompt"), known=2)


def test_train_takes_its_name_without_the_word_live() -> None:
    assert require_method("ueo", "train") == require_method("live-ueo", "train") == "live-ueo"
    assert require_method("ueo", "fit") == "ueo"
    with pytest.raises(UserError, match="run: fewshot train live-ueo"):
        require_method("live-ueo", "fit")
    with pytest.raises(UserError, match="gda is fitted on stored features"):
        require_method("gda", "train")
