from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from cache.arrays.image_tower import ImageTower
from cache.datasets.resolving import resolve_folder
from cache.errors import UserError
from cache.extract import extract
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.pair import paired
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.answers import Answers
from fewshot.adapters.export.exporting import export
from fewshot.adapters.export.onnx_graph import graph_of
from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.adapters.image_results import PredictionForm
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.adapters.stored_images import StoredImages
from fewshot.automatic.judging import inputs
from fewshot.evaluation import evaluate
from fewshot.fitting import fit
from fewshot.methods import ProLIP
from fewshot.parts.projected import PooledClassifier, ProjectedClassifier
from fewshot.protocol import Asked
from fewshot.settling import configured, require_labels, settled
from fewshot.store_features import query
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.toy_adapters import fitted_adapter
from tests.toys import in_turn, task, vectors

WIDTH, DIM, N_CLASSES = 12, 8, 3


def pooled(n_views: int = 0) -> tuple[SupportSet, Text, ImageTower]:
    """Pooled images of any norm; one class has an image less."""
    labels = in_turn(N_CLASSES, 4, left_out=1)
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(len(labels), WIDTH, generator=draw)
    views = torch.randn(n_views, len(labels), WIDTH, generator=draw) if n_views else None
    scale, shift, projection = (
        torch.randn(*shape, generator=draw).numpy() for shape in ((WIDTH,), (WIDTH,), (WIDTH, DIM))
    )
    tower = ImageTower(scale, shift, (projection / WIDTH**0.5).astype(np.float32))
    support = SupportSet(features, labels, N_CLASSES, views, unit_norm=False, tower=tower)
    return support, Text(vectors(1, N_CLASSES, DIM)), tower


def by_autograd(
    start: Tensor, views: Tensor, labels: Tensor, text: Tensor, penalty: float, epochs: int
) -> Tensor:
    """The paper's training as torch has its parts."""
    tuned = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([tuned], lr=0.02, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    distance = nn.MSELoss(reduction="sum")
    for epoch in range(epochs):
        features = normalize(views[epoch % len(views)] @ tuned, dim=1)
        loss = cross_entropy(50 * features @ text.T, labels) + penalty * distance(tuned, start)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return tuned.detach()


@pytest.mark.parametrize(
    ("penalty", "as_number"), [("1/K", 3 / 11), ("1/K^2", (3 / 11) ** 2), (0.0, 0.0), (0.7, 0.7)]
)
def test_the_projection_is_what_autograd_and_torch_s_adam_make_of_it(
    penalty: str | float, as_number: float
) -> None:
    support, text, tower = pooled(n_views=3)
    assert support.views is not None
    scale, shift, start = (
        torch.from_numpy(part) for part in (tower.scale, tower.shift, tower.projection)
    )
    method = ProLIP(penalty=penalty, lr=0.02, epochs=20, logit_scale=50.0)  # type: ignore[arg-type]
    found = method.fit(support, text)
    assert isinstance(found, PooledClassifier)
    views = scale * support.views + shift
    expected = by_autograd(start, views, support.labels, text.features, as_number, 20)
    torch.testing.assert_close(found.projection, expected, rtol=1e-4, atol=1e-4)
    assert (expected - start).abs().max() > 0.02
    query = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(4))
    logits = 50 * normalize((scale * query + shift) @ expected, dim=1) @ text.features.T
    torch.testing.assert_close(found.logits(query), logits, rtol=1e-3, atol=1e-2)
    assert found.stats == {"trained_parameters": WIDTH * DIM, "pre_projection": 1.0}


def test_of_projected_features_the_projection_starts_as_the_identity() -> None:
    support, text, query = task(N_CLASSES, dim=DIM)
    found = ProLIP(penalty=0.3, lr=0.02, epochs=10, logit_scale=50.0).fit(support, text)
    eye = torch.eye(DIM)
    expected = by_autograd(eye, support.features[None], support.labels, text.features, 0.3, 10)
    assert isinstance(found, ProjectedClassifier)
    torch.testing.assert_close(found.projection, expected, rtol=1e-4, atol=1e-4)
    assert found.stats["pre_projection"] == 0.0
    untrained = ProLIP(epochs=0).fit(support, text)
    torch.testing.assert_close(untrained.logits(query), 100 * query @ text.features.T)


def test_new_classes_are_classified_through_the_projection_of_the_base_classes() -> None:
    support, text, _ = pooled()
    method, new = ProLIP(epochs=5), Text(vectors(7, 2, DIM))
    found, base = method.fit_new_classes(support, text, new), method.fit(support, text)
    assert isinstance(found, PooledClassifier)
    assert isinstance(base, PooledClassifier)
    assert torch.equal(found.projection, base.projection)
    torch.testing.assert_close(found.weight, 100 * new.features)


def test_features_are_refused_where_pooled_images_are_asked_for() -> None:
    support, text, _ = task(N_CLASSES)
    with pytest.raises(UserError, match=r"got features; extract .* --pre-projection"):
        ProLIP(space="pre-projection").fit(support, text)


def extracted(
    photos: Path, encoder: Encoder, path: Path, *, pre_projection: bool = True
) -> FeatureStore:
    source = resolve_folder(photos)
    prompts = prompt_sets(source.classnames, source.templates)
    recipe = Recipe(prompts, views=2, pre_projection=pre_projection)
    extract(source, encoder, recipe, path, bank=path.with_name("bank.sqlite"))
    return FeatureStore.open(path)


@pytest.fixture
def store(draw_photos: Callable[..., Path], encoder: Encoder, tmp_path: Path) -> FeatureStore:
    return extracted(draw_photos(14), encoder, tmp_path / "store.h5")


QUICK = {"epochs": 20, "lr": 0.01, "penalty": 0.0}


def test_a_store_gives_what_it_has_and_the_result_says_which(
    store: FeatureStore, encoder: Encoder, tmp_path: Path
) -> None:
    fitted = fit(store, "prolip", shots=2, tune="none", fixed=QUICK)
    assert fitted.support is not None
    assert store.image_tower is not None
    width, dim = store.image_tower.projection.shape
    assert width != dim
    assert fitted.support.features.shape == (6, width)
    assert fitted.support.views is not None
    assert fitted.support.views.shape == (2, 6, width)
    projected = normalize(fitted.support.joint, dim=1)
    asked = {"space": "features", "epochs": 0}
    behind = fit(store, "prolip", shots=2, tune="none", fixed=asked)
    assert behind.support is not None
    assert behind.support.tower is None
    torch.testing.assert_close(projected, behind.support.features, rtol=0, atol=5e-3)
    views = torch.from_numpy(store.image_tower.features(fitted.support.views.numpy()))
    views = normalize(views, dim=-1)
    torch.testing.assert_close(views, behind.support.views, rtol=0, atol=5e-3)
    results = [
        evaluate(store, "prolip", shots=2, tune="none", fixed=asked)
        for asked in ({"epochs": 0}, {"epochs": 0, "space": "features"})
    ]
    zero_shot = evaluate(store, "zero-shot")
    assert [r.hyperparameters["space"] for r in results] == ["pre-projection", "features"]
    assert [r.measures["pre_projection"] for r in results] == [1.0, 0.0]
    assert results[0].accuracy == pytest.approx(zero_shot.accuracy, abs=0.1)
    bare = extracted(
        store.path.parent / "photos", encoder, tmp_path / "bare.h5", pre_projection=False
    )
    assert configured(bare, "prolip") == replace(configured(store, "prolip"), space="features")
    with pytest.raises(UserError, match=r"no features before the projection; run .* --pre-proj"):
        fit(bare, "prolip", shots=2, tune="none", fixed={"space": "pre-projection"})
    with pytest.raises(UserError, match="a pair of models has no pooled images"):
        fit(paired(store, bare), "prolip", shots=2, fixed={"space": "pre-projection"})
    assert configured(paired(store, bare), "prolip").name == "prolip"
    made: Asked = {"setting": "base-to-new", "synthesize": "ship"}
    assert settled(store, "prolip", None, made)[0] == configured(bare, "prolip")
    with pytest.raises(UserError, match="--set space=features"):
        require_labels(configured(store, "prolip"), "ship")


def test_all_images_of_a_store_come_in_the_form_that_the_method_needs(store: FeatureStore) -> None:
    support_of, _ = inputs(store)
    before, behind = (
        support_of(replace(ProLIP(), space=space)) for space in ("pre-projection", "features")
    )
    assert before.tower is not None
    assert behind.tower is None
    torch.testing.assert_close(normalize(before.joint, dim=1), behind.features, rtol=0, atol=5e-3)


@pytest.mark.parametrize("space", ["pre-projection", "features"])
def test_what_was_saved_predicts_and_exports_what_was_fitted(
    store: FeatureStore, encoder: Encoder, tmp_path: Path, space: str
) -> None:
    path = tmp_path / "p.safetensors"
    asked = {**QUICK, "space": space}
    fit_and_save(store, "prolip", path, shots=8, tune="none", fixed=asked)
    adapter = load_adapter(path)
    predictor = with_encoder(adapter, encoder)
    fitted = fit(store, "prolip", shots=8, tune="none", fixed=asked)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    own = encoder.encode_images(pixels)
    features = predictor.features(pixels)
    projected = normalize(predictor.joint(features), dim=1)
    torch.testing.assert_close(projected, normalize(own, dim=1), rtol=0, atol=1e-5)
    logits = predictor.logits(features)
    torch.testing.assert_close(logits, fitted.classifier.logits(features))
    stored = list(StoredImages(adapter, store, "test").predictions(0, 3))
    test = store.split("test")
    rows = fitted.classifier.logits(query(test, fitted.method, np.arange(3))).argmax(dim=1)
    assert [one.classes[0] for one in stored] == [store.classnames[k] for k in rows.tolist()]
    assert adapter.open_set is not None
    asked_form = PredictionForm(unknown=True)
    assert len(list(Answers(predictor, asked_form)(["a", "b", "c"], features))) == 3
    with torch.no_grad():
        graph, _ = graph_of(adapter, encoder)(pixels)
    torch.testing.assert_close(graph, logits, rtol=1e-4, atol=1e-3)
    before = encoder.model.visual.proj.clone()
    export(path, "open_clip", tmp_path / "out")  # compares features and logits
    assert torch.equal(encoder.model.visual.proj, before)


def test_a_tower_that_ends_in_no_matrix_is_refused_by_open_clip_s_export(
    random_resnet: Path, tmp_path: Path
) -> None:
    resnet = load(f"local-dir:{random_resnet}", device="cpu")
    with pytest.raises(UserError, match=r"does not end in a matrix .* --to onnx"):
        export(fitted_adapter(resnet, "prolip"), "open_clip", tmp_path / "out")
