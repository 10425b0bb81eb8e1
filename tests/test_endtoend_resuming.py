import contextlib
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from cache.store import FeatureStore
from fewshot.endtoend import train as train_module
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.experiment import run
from tests.small_training import COOP, LORA, equal, stored, trained, uneven


@pytest.fixture
def source(colored: Source) -> Source:
    return uneven(colored)


@pytest.mark.parametrize(("method", "with_store"), [(COOP, True), (LORA, False)])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(
    encoder: Encoder, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: EndToEnd, with_store: bool, stop: int,
) -> None:  # fmt: skip
    store = stored(source, encoder, tmp_path / "s.h5", 2) if with_store else None
    undisturbed, steps = trained(method, encoder, source, store=store)
    clock = SimpleNamespace(monotonic=itertools.count(step=31).__next__)  # a checkpoint every step
    monkeypatch.setattr(train_module, "time", clock)

    def interrupt(step: int, loss: float, accuracy: float, rate: float) -> None:
        if step > stop:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(method, encoder, source, store=store, checkpoint=checkpoint, watch=interrupt)
    resumed, left = trained(method, encoder, source, store=store, checkpoint=checkpoint)
    assert left == steps[stop:]
    assert equal(resumed, undisturbed)
    assert resumed.result.accuracy == undisturbed.result.accuracy
    again, left = trained(method, encoder, source, store=store, checkpoint=checkpoint)
    assert left == []
    assert equal(again, undisturbed)


def test_a_finished_run_notices_that_images_have_other_bytes_now(
    encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    def copy_over(item: Item, other: Item) -> None:
        shutil.copy(source.images.place(other.path), source.images.place(item.path))

    checkpoint = tmp_path / "c.safetensors"
    method = replace(LORA, iterations_per_shot=1)
    first, _ = trained(method, encoder, source, checkpoint=checkpoint)
    train, test = source.splits["train"], source.splits["test"]
    copy_over(test[0], test[-1])
    tested, steps = trained(method, encoder, source, checkpoint=checkpoint)
    assert (steps, tested.again, equal(tested, first)) == ([], False, True)
    assert tested.result.image_digest != first.result.image_digest
    assert trained(method, encoder, source, checkpoint=checkpoint)[0].again
    for item in train:
        copy_over(item, test[-1])
    with pytest.raises(UserError, match="is the checkpoint of another run, of other images"):
        trained(method, encoder, source, checkpoint=checkpoint)


def test_the_checkpoint_of_another_run_is_refused(
    random_vit: Path, encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "c.safetensors"
    store, other = (
        stored(source, encoder, tmp_path / f"{seed}.h5", 2, view_seed=seed) for seed in (0, 1)
    )
    trained(COOP, encoder, source, store=store, checkpoint=checkpoint)
    renamed = replace(source, classnames=("x", *source.classnames[1:]))
    runs: list[tuple[EndToEnd, Source, FeatureStore | None]] = [
        (replace(COOP, lr=0.2), source, store),
        (COOP, source, other),
        (COOP, source, None),
        (COOP, replace(source, templates=("no {}",)), store),
        (COOP, renamed, store),
    ]
    for method, here, its_store in runs:
        with pytest.raises(UserError, match="is the checkpoint of another run"):
            trained(method, encoder, here, store=its_store, checkpoint=checkpoint)
    with pytest.raises(UserError, match="is the checkpoint of another run"):
        run(COOP, encoder, source, shots=2, seed=6, store=store, checkpoint=checkpoint)
    with pytest.raises(UserError, match="is the checkpoint of another run"):
        trained(COOP, encoder, source, store=store, checkpoint=checkpoint, views=False)
    live = tmp_path / "live.safetensors"
    trained(LORA, encoder, source, checkpoint=live)
    squashing = load(f"local-dir:{random_vit}", device="cpu", resize="squash")
    with pytest.raises(UserError, match="is the checkpoint of another run"):
        trained(LORA, squashing, source, checkpoint=live)


def test_a_loss_that_falls_is_no_complaint_and_one_that_stays_is_after_a_stop_too(
    encoder: Encoder, source: Source, tmp_path: Path
) -> None:
    def complaint(lr: float, **options: Any) -> str:
        method = replace(COOP, lr=lr, epochs=30, batch_size=6)
        return trained(method, encoder, source, store=store, **options)[0].complaint

    def stop(step: int, *_: float) -> None:
        if step == 25:
            raise KeyboardInterrupt

    store = stored(source, encoder, tmp_path / "toy.h5")
    assert complaint(0.1) == ""
    said = complaint(1e-9)
    assert "the loss did not fall" in said
    checkpoint = tmp_path / "c.safetensors"
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("time.monotonic", itertools.count(0, 60).__next__)
        complaint(1e-9, checkpoint=checkpoint, watch=stop)
    assert steps_done(checkpoint) == 24
    assert complaint(1e-9, checkpoint=checkpoint) == said
    assert complaint(1e-9, checkpoint=checkpoint) == said  # of a finished run
