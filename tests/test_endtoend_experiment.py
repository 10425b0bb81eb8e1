import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.endtoend.clip import Clip, EndToEnd
from fewshot.endtoend.experiment import run
from fewshot.endtoend.methods.cocoop import CoCoOp
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.methods.ett import ETT
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.endtoend.training_set import TrainingSet
from fewshot.protocol import Protocol
from fewshot.sampling import draw
from tests.small_training import COOP, LORA, equal, sample_of, stored, trained, uneven


@pytest.fixture
def source(colored: Source) -> Source:
    return uneven(colored)


@pytest.mark.parametrize("kind", ["views", "features", "live"])
def test_a_frozen_image_tower_learns_from_the_store_or_else_from_live_crops(
    encoder: Encoder, source: Source, tmp_path: Path, kind: str
) -> None:
    rows = sample_of(source)
    items = [source.splits["train"][row] for row in rows]
    store = (
        None
        if kind == "live"
        else stored(source, encoder, tmp_path / "s.h5", 2 * (kind == "views"))
    )

    def features(chosen: Tensor, epoch: int) -> Tensor:
        if store is None:
            crops = [
                encoder.preprocess.view(source.read(items[i].path), (0.08, 1.0), (5, i, epoch))
                for i in chosen.tolist()
            ]
            return encoder.encode_images(torch.stack(crops)).clone()
        at = [rows[i] for i in chosen.tolist()]
        if kind == "views":
            return torch.from_numpy(store.split("train").views(at)[epoch % 2])
        return torch.from_numpy(store.features("train", at))

    learner = COOP.attach(Clip.of(encoder), source.classnames, source.templates)
    [context] = learner.parameters.values()
    optimizer = torch.optim.SGD([context], lr=0.1, momentum=0.9, weight_decay=5e-4)
    labels = torch.tensor([item.label for item in items])
    for epoch, rate in enumerate((1e-5, 0.1, 0.1 * (1 + np.cos(np.pi / 3)) / 2)):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(5 * 1_000_003 + epoch))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss, _ = learner.loss(features(order[:4], epoch), labels[order[:4]])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    ours, steps = trained(COOP, encoder, source, store=store)
    assert steps == [1, 2, 3]
    assert ours.result.n_views == {"views": 2, "features": 1, "live": 0}[kind]
    torch.testing.assert_close(ours.learner.parameters["context"], context, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [COOP, LORA, CoCoOp(epochs=1, lr=0.1)])
@pytest.mark.parametrize("with_store", [False, True])
def test_the_accuracy_is_that_of_each_test_image_by_itself(
    encoder: Encoder, source: Source, tmp_path: Path, method: EndToEnd, with_store: bool
) -> None:
    store = stored(source, encoder, tmp_path / "s.h5") if with_store else None
    done: list[int] = []
    ours, _ = trained(method, encoder, source, store=store, batch_size=3, advance=done.append)
    items = source.splits["test"]
    right: list[tuple[int, bool]] = []
    model = ours.clip.model
    for item in items:
        pixels = encoder.preprocess.center(source.read(item.path))[None]
        with torch.no_grad():
            image = (ours.learner.images or model.encode_image)(pixels)
            if ours.learner.score is not None:
                logits = ours.learner.score(image)
            else:
                logits = normalize(image) @ normalize(ours.learner.text()).T
        right.append((item.label, int(logits.argmax()) == item.label))
    result = ours.result
    assert result.accuracy == pytest.approx(sum(hit for _, hit in right) / len(items))
    by_class = [np.mean([hit for label, hit in right if label == k]) for k in range(3)]
    assert result.per_class_accuracy == pytest.approx(np.mean(by_class))
    assert result.n_test == len(items) == sum(done)
    if isinstance(method, CoCoOp):
        assert max(done) <= 3


def test_few_shots_of_colored_photos_are_learned(encoder: Encoder, source: Source) -> None:
    method = replace(LORA, iterations_per_shot=20)
    truth = [item.label for item in source.splits["test"]]
    assert (
        trained(method, encoder, source)[0].result.accuracy
        > 0.8
        > max(truth.count(k) / len(truth) for k in range(3))
    )


def test_the_result_says_what_was_run(encoder: Encoder, source: Source, tmp_path: Path) -> None:
    live, _ = trained(LORA, encoder, source, fixed={"lr", "batch_size"})
    result = live.result
    assert asdict(result.run) | {"fixed": None} == {
        "method": "clip-lora", "fixed": None, "dataset": "photos",
        "model": encoder.identity["name"], "setting": "few-shot", "fitted_on": "photos",
        "shots": 2, "seed": 5, "tune": "none", "imbalance": None, "prompt_set": None, "n_views": 0,
        "blend": "auto", "fingerprint": encoder.identity["weights"],
        "known": None, "score": None, "synthesized": None, "threshold": None,
    }  # fmt: skip
    assert result.fixed == {"batch_size": LORA.batch_size, "lr": LORA.lr}
    crops = {"crop_scale": [0.08, 1.0], "flip": True}
    assert result.hyperparameters == asdict(LORA) | crops
    assert (result.n_classes, result.n_support, result.n_validation) == (3, 6, 0)
    assert result.measures == {"trained_parameters": 2 * 3 * 2 * 2 * (64 + 8)}
    assert result.fit_seconds > 0 < result.predict_seconds
    assert type(result).from_json(result.to_json()) == result
    store = stored(source, encoder, tmp_path / "s.h5")
    assert trained(COOP, encoder, source, store=store)[0].result.fingerprint == store.fingerprint


@pytest.mark.parametrize(("method", "with_store"), [(COOP, True), (COOP, False), (LORA, False)])
def test_the_test_split_steers_nothing(
    encoder: Encoder, source: Source, tmp_path: Path, method: EndToEnd, with_store: bool
) -> None:
    test = source.splits["test"]
    other = tuple(Item(item.path, (item.label + 1) % 3) for item in test[::-2])
    others = replace(source, splits={**source.splits, "test": other})
    runs = []
    for number, here in enumerate((source, others)):
        store = stored(here, encoder, tmp_path / f"{number}.h5", 2) if with_store else None
        runs.append(trained(method, encoder, here, store=store)[0])
    assert equal(*runs)
    assert runs[0].result.n_test != runs[1].result.n_test


def test_threads_change_nothing_and_the_encoder_stays_as_it_was(
    encoder: Encoder, source: Source
) -> None:
    before = copy.deepcopy(encoder.model.state_dict())
    one, many = (trained(LORA, encoder, source, workers=w)[0] for w in (1, 4))
    assert equal(one, many)
    assert not equal(one, run(LORA, encoder, source, shots=2, seed=6))
    after = encoder.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Unflipped(CoOp):
    """CoOp where a mirrored image would be another class's."""

    def plan(self, shots: int, n_images: int) -> TrainingPlan:
        return replace(super().plan(shots, n_images), flip=False, crop_scale=(1.0, 1.0))


def test_the_plan_says_how_images_are_cropped_and_whether_they_are_mirrored(
    encoder: Encoder, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    view = type(encoder.preprocess).view

    def watched(self: Any, image: Any, scale: Any, key: Any, *, flip: bool = True) -> Tensor:
        asked.append((scale, flip))
        return view(self, image, scale, key, flip=flip)

    monkeypatch.setattr(type(encoder.preprocess), "view", watched)
    trained(Unflipped(**asdict(COOP)), encoder, source)
    assert set(asked) == {((1.0, 1.0), False)}


def test_few_shots_as_the_authors_draw_them_do_without_a_val_split(source: Source) -> None:
    labels = [item.label for item in source.splits["train"]]
    protocol = Protocol(shots=2, seed=5)
    theirs, ours = (
        TrainingSet.of(LORA, source, protocol, val_first=first).rows.tolist()
        for first in (True, False)
    )
    expected = draw(labels, source.classnames, shots=2, seed=5, val_first=True).train
    assert theirs == expected.tolist() != ours == sample_of(source)


def test_all_shots_are_all_images_and_a_class_without_any_is_known_by_its_text(
    encoder: Encoder, source: Source
) -> None:
    train = source.splits["train"]
    kept = [x for x in train if x.label == 0] + [x for x in train if x.label == 2][:2]
    unequal = replace(source, splits={**source.splits, "train": tuple(kept)})
    done, steps = trained(LORA, encoder, unequal, shots="all")
    result = done.result
    assert (result.n_support, result.shots, result.setting) == (7, 5, "imbalanced")
    assert steps[-1] == LORA.iterations_per_shot * 4  # of 3.5 images a class on average
    assert done.learner.text().shape[0] == 3
    refused = "starts from train images of every class, and 'green' has none"
    with pytest.raises(UserError, match=refused):
        run(ETT(), encoder, unequal, shots="all")
    with pytest.raises(UserError, match="sets everything itself; got shots all"):
        run(COOP, encoder, unequal, shots="all", official=True)
