import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve
from cache.datasets.source import Item, Source
from cache.errors import UserError
from cache.images.decoding_memory import MEMORY
from cache.images.preprocessing import Preprocess
from fewshot.endtoend import photos as photos_module
from fewshot.endtoend.photos import PhotoBatches, center_crops, require_images

PREPROCESS = Preprocess(16, (0.5,) * 3, (0.25,) * 3, "bicubic", "shortest")
SCALE = (0.2, 0.9)


@dataclass(frozen=True)
class Counted(Source):
    """A source that remembers what was read."""

    seen: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[Image.Image]:
        self.seen.append(path)
        with super().opened(path) as image:
            yield image


@pytest.fixture
def source(draw_photos: Callable[..., Path]) -> Counted:
    root = draw_photos(7)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    items = tuple(Item(path, 0) for path in paths)
    return Counted("photos", root, ("a",), {"train": items}, ("{}",), "here")


def paths_of(source: Source) -> list[str]:
    return [item.path for item in source.splits["train"]]


def photos(source: Source, *, seed: int = 3, workers: int = 2, flip: bool = True) -> PhotoBatches:
    return PhotoBatches(
        source, paths_of(source), PREPROCESS,
        crop_scale=SCALE, flip=flip, seed=seed, workers=workers,
    )  # fmt: skip


@pytest.mark.parametrize("keep", [2**32, 0, 3 * 40 * 50 * 2])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_crop_is_a_function_of_seed_row_and_epoch_alone(
    source: Source, workers: int, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos_module, "KEEP", keep)
    ours = photos(source, workers=workers)
    for rows, epoch in (([4, 0, 20, 11], 0), ([11, 4], 5), ([0, 1, 2, 3, 4], 0)):
        expected = [
            PREPROCESS.view(source.read(paths_of(source)[row]), SCALE, (3, row, epoch))
            for row in rows
        ]
        assert torch.equal(ours(torch.tensor(rows), epoch), torch.stack(expected))


def test_seeds_and_epochs_crop_differently(source: Source) -> None:
    row = torch.tensor([2])
    first, other, negative = photos(source), photos(source, seed=4), photos(source, seed=-3)
    assert not torch.equal(first(row, 0), first(row, 1))
    assert not torch.equal(first(row, 0), other(row, 0))
    assert not torch.equal(first(row, 0), negative(row, 0))


def test_images_are_decoded_once_as_far_as_memory_is_meant_for_them(
    source: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos_module, "KEEP", 3 * 40 * 50 * 2)  # two of them
    ours = photos(source, workers=1)
    for epoch in range(3):
        ours(torch.arange(5), epoch)
    counts = [source.seen.count(path) for path in paths_of(source)[:5]]
    assert counts == [1, 1, 3, 3, 3]


def test_no_crop_is_mirrored_where_none_may_be(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "ramp.png")
    items = (Item("ramp.png", 0),) * 40
    source = Source("ramp", tmp_path, ("a",), {"train": items}, ("{}",), "here")
    either, upright = photos(source), photos(source, flip=False)
    mirrored = 0
    for with_flip, without in zip(
        either(torch.arange(40), 0), upright(torch.arange(40), 0), strict=True
    ):
        assert without[0, 0, -1] > without[0, 0, 0]
        same = torch.equal(with_flip, without)
        assert same or torch.allclose(with_flip, without.flip(2), atol=1e-6)
        mirrored += not same
    assert 8 < mirrored < 32


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7, 8, 9, 12, 13, 21])
@pytest.mark.parametrize("workers", [1, 3])
def test_center_crops_are_all_there_and_in_order(source: Source, n: int, workers: int) -> None:
    paths = paths_of(source)[::-1][:n]
    done: list[int] = []
    batches = list(
        center_crops(source, paths, PREPROCESS, batch_size=4, workers=workers, advance=done.append)
    )
    assert [len(batch) for batch in batches] == done == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
    for crop, path in zip([crop for batch in batches for crop in batch], paths, strict=True):
        assert torch.equal(crop, PREPROCESS.center(source.read(path)))


def test_center_crops_are_decoded_no_more_than_two_batches_ahead(source: Counted) -> None:
    crops = center_crops(source, paths_of(source), PREPROCESS, batch_size=2, workers=1)
    next(crops)
    crops.close()  # type: ignore[attr-defined]  # a generator
    assert len(source.seen) <= 6


@pytest.mark.parametrize("damage", ["missing", "broken off"])
def test_an_image_that_cannot_be_read_is_named(source: Source, damage: str) -> None:
    path = source.root / paths_of(source)[9]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=rf"cannot read {path}: .*; fix it, or remove it"):
        photos(source)(torch.tensor([3, 9]), 0)
    with pytest.raises(UserError, match=rf"cannot read {path}: "):
        list(center_crops(source, paths_of(source), PREPROCESS, batch_size=4))


def test_a_sliver_that_cannot_be_resized_is_named(source: Source) -> None:
    longest = Preprocess(8, (0.0,) * 3, (1.0,) * 3, "bicubic", "longest")
    path = source.root / paths_of(source)[9]
    Image.new("L", (1, 5000)).save(path)
    with pytest.raises(UserError, match=f"cannot read {path}: "):
        list(center_crops(source, paths_of(source), longest, batch_size=4))


@pytest.mark.parametrize("workers", [1, 4])
def test_images_that_are_not_there_are_counted_and_the_first_named(
    source: Source, workers: int
) -> None:
    require_images(source, paths_of(source), workers=workers)
    for row in (15, 4, 8):
        (source.root / paths_of(source)[row]).unlink()
    (source.root / paths_of(source)[6]).write_bytes(b"")
    first = source.root / paths_of(source)[4]
    with pytest.raises(
        UserError,
        match=rf"^4 of 21 images of photos cannot be read, the first {first}: no file at .*; fix",
    ):
        require_images(source, paths_of(source), workers=workers)
    require_images(source, paths_of(source)[:4], workers=workers)


def test_images_that_come_with_a_package_are_there(tmp_path: Path) -> None:
    digits = resolve(load_manifest("digits"), tmp_path)
    require_images(replace(digits, root=tmp_path), [digits.splits["train"][0].path])


@pytest.mark.parametrize("keep", [2**32, 0])
def test_an_image_counts_as_decoded_until_its_crop_is_made(
    source: Source, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Watched(Preprocess):
        def view(self, *arguments: Any, **options: Any) -> torch.Tensor:
            held.append(MEMORY.held)
            return super().view(*arguments, **options)

        def center(self, image: Any) -> torch.Tensor:
            held.append(MEMORY.held)
            return super().center(image)

    monkeypatch.setattr(photos_module, "KEEP", keep)
    watched = Watched(16, (0.5,) * 3, (0.25,) * 3, "bicubic", "shortest")
    batches = PhotoBatches(source, paths_of(source), watched, crop_scale=SCALE, seed=3, workers=1)
    batches(torch.tensor([0]), 0)
    list(center_crops(source, paths_of(source)[:1], watched, batch_size=1, workers=1))
    assert held == [40 * 50 * 8] * 2
    assert MEMORY.held == 0
