import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.datasets.source import Source
from cache.errors import UserError
from cache.models.encoder import Encoder, wrap
from fewshot.endtoend.experiment import run
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from tests.small_training import COOP, LORA, equal, sample_of, stored, trained, uneven


@pytest.fixture
def source(colored: Source) -> Source:
    return uneven(colored)


def test_a_store_of_other_weights_or_images_is_refused(
    encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    model = copy.deepcopy(encoder.model)
    with torch.no_grad():
        model.visual.proj[0, 0] += 1e-3
    other = wrap(
        model, encoder.tokenizer, encoder.device,
        name=encoder.identity["name"], arch=encoder.identity["arch"],
    )  # fmt: skip
    store = stored(source, other, tmp_path / "s.h5")
    with pytest.raises(
        UserError, match=r"s\.h5 was made with other weights than .*; extract it again, or .*--live"
    ):
        trained(COOP, encoder, source, store=store)
    store = stored(source, encoder, tmp_path / "t.h5")
    for split in ("train", "test"):
        items = source.splits[split]
        fewer = source.without([items[-1].path])
        relabeled = (replace(items[0], label=(items[0].label + 1) % 3), *items[1:])
        moved = (items[1], items[0], *items[2:])  # of one class
        for here in (
            fewer,
            replace(source, splits={**source.splits, split: relabeled}),
            replace(source, splits={**source.splits, split: moved}),
        ):
            with pytest.raises(UserError, match=rf"has other {split} images or labels than photos"):
                trained(COOP, encoder, here, store=store)


def test_images_that_are_missing_are_found_before_training(
    encoder: Encoder, source: Source
) -> None:
    items = source.splits["train"]
    sampled = sample_of(source)
    for row in set(range(len(items))) - set(sampled):
        (source.root / items[row].path).unlink()
    trained(LORA, encoder, source)  # nobody needs these
    gone = [items[row].path for row in sampled[1:3]] + [source.splits["test"][0].path]
    for path in gone:
        (source.root / path).unlink()
    n = len(sampled) + len(source.splits["test"])
    steps: list[int] = []
    for method in (LORA, COOP):
        with pytest.raises(
            UserError, match=rf"^3 of {n} images of photos cannot be read, the first .*{gone[0]}: "
        ):
            trained(method, encoder, source, watch=lambda step, *rest: steps.append(step))
    assert steps == []


def test_with_a_store_a_frozen_image_tower_needs_no_images(
    encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    store = stored(source, encoder, tmp_path / "s.h5", 2)
    before, _ = trained(COOP, encoder, source, store=store)
    shutil.rmtree(source.root)
    assert equal(trained(COOP, encoder, source, store=store)[0], before)
    with pytest.raises(UserError, match=r"^14 of 14 images of photos cannot be read"):
        trained(LORA, encoder, source, store=store)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dataset_without_a_split_that_is_needed_is_refused(
    encoder: Encoder, source: Source, split: str
) -> None:
    left = {name: items for name, items in source.splits.items() if name != split}
    for splits in (left, {**source.splits, split: ()}):
        with pytest.raises(UserError, match=f"photos has no {split} split; add one"):
            trained(COOP, encoder, replace(source, splits=splits))


def test_one_class_is_nothing_to_tell_apart(encoder: Encoder, source: Source) -> None:
    one = tuple(item for item in source.splits["train"] if item.label == 0)
    alone = replace(source, classnames=("blue",), splits={"train": one, "test": one})
    with pytest.raises(UserError, match="a classifier needs two classes; photos has 1; add"):
        trained(COOP, encoder, alone)


def test_a_model_that_its_last_step_broke_gives_no_result(
    encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    method = CLIPLoRA(iterations_per_shot=1, lr=1e30)
    with pytest.raises(UserError, match="logits are not finite, so its last steps diverged; use a"):
        trained(method, encoder, source, shots=1, save=tmp_path / "predictions")
    assert not (tmp_path / "predictions").exists()


def test_more_shots_than_there_are_images_are_refused(encoder: Encoder, source: Source) -> None:
    with pytest.raises(UserError, match="6 train images of every class are needed"):
        run(COOP, encoder, source, shots=6, seed=1)
