import functools
import gc
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

if TYPE_CHECKING:
    from cache.datasets.source import Source
    from cache.models.encoder import Encoder
    from cache.store import FeatureStore
    from tests.nasty_photos import User

# What tests compute is small: a second thread costs more than it brings, above all beside others.
# Processes that tests start compute with as many, for sums of more threads end in other last bits.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The libraries are a million objects that stay: looking among them for garbage took an eighth of
# the time, and in a forked process it copies them.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from now on, among what the tests make, and read CLIP's vocabulary once."""
    gc.freeze()
    gc.enable()
    if "open_clip" in sys.modules:
        from open_clip import factory

        factory.SimpleTokenizer = functools.cache(factory.SimpleTokenizer)


# Files whose tests start processes, train, encode, build pages or try thousands of inputs. Together
# they take nine tenths of the time; `make check` leaves them out.
SLOW = (
    "test_adapter", "test_add_a_method", "test_atomic", "test_auto_", "test_bench",
    "test_changed_images", "test_cli", "test_clip_", "test_demo", "test_digits", "test_docs",
    "test_doctor", "test_encoder", "test_endtoend_", "test_engines", "test_estimator",
    "test_examples", "test_export", "test_extract", "test_folder", "test_fuzz_", "test_imagenet",
    "test_import", "test_learning_curve", "test_loading", "test_lp_", "test_methods",
    "test_official", "test_opened_adapter", "test_predict", "test_preflight", "test_remedies",
    "test_report", "test_results", "test_robust_", "test_selection", "test_source", "test_taskres",
    "test_tiny_", "test_tip_", "test_transclip", "test_tuning", "test_words",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    for item in items:
        if item.path.name.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


TEXT: dict[str, object] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 8,
    "heads": 2,
    "layers": 2,
}
VIT: dict[str, object] = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
RESNET: dict[str, object] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}


@pytest.fixture(autouse=True)
def no_model_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have one set."""
    monkeypatch.delenv("FEWSHOT_MODEL", raising=False)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own Ctrl-C, which a shell's background job, and so its tests, would be without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def shared() -> Path:
    """Real features, images and split files, where a checkout has them beside it."""
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("no shared test data beside this checkout")
    return data


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of stores with one in it, of the digits by the tiny model: to be copied, not changed.

    The processes of a run share it, and the first that needs it makes it.
    """
    from fewshot.demo import extract_digits

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    stores = base / "digits-store"
    with FileLock(base / "digits-store.lock"):
        if not stores.exists():
            extract_digits(base / "digits-store-unfinished")
            (base / "digits-store-unfinished").rename(stores)
    return stores


@pytest.fixture(scope="session")
def digit_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ten class folders with 20 digits each, to be copied: what trains on images."""
    from fewshot.demo import write_photos

    folder = tmp_path_factory.mktemp("digits") / "photos"
    write_photos(folder)
    shutil.rmtree(folder / "unlabeled")
    return folder


def _random_clip(directory: Path, vision: dict[str, object]) -> Path:
    import open_clip  # takes seconds, and most tests do without

    torch.manual_seed(0)
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    weights = open_clip.CLIP(16, vision, TEXT).state_dict()
    save_file(weights, directory / "open_clip_model.safetensors")
    return directory


@pytest.fixture(scope="session")
def random_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a CLIP with random weights and a ViT image tower, 32 x 32 pixels, D = 16."""
    return _random_clip(tmp_path_factory.mktemp("vit"), VIT)


@pytest.fixture(scope="module")
def encoder(random_vit: Path) -> "Encoder":
    """That CLIP, loaded again for each file of tests."""
    from cache.models.loading import load

    return load(f"local-dir:{random_vit}", device="cpu")


@pytest.fixture(scope="session")
def random_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with CLIP's modified ResNet."""
    return _random_clip(tmp_path_factory.mktemp("resnet"), RESNET)


@pytest.fixture
def user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> "User":
    """Somebody who types commands in an empty folder."""
    from tests.nasty_photos import User

    monkeypatch.chdir(tmp_path)
    return User(tmp_path, capsys)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with no environment to lean on."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSHOT_DATA", "FEWSHOT_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no hub cache, and an empty folder to work in."""
    from huggingface_hub import constants

    from fewshot.doctor import machine

    def cut_off(*_: object) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", cut_off)
    monkeypatch.setattr(machine, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def resnet(random_resnet: Path) -> "Encoder":
    """That ResNet, loaded again for each file of tests."""
    from cache.models.loading import load

    return load(f"local-dir:{random_resnet}", device="cpu")


@pytest.fixture
def draw_photos(tmp_path: Path) -> Callable[..., Path]:
    """A function that draws a folder of class folders, `n` noisy photos of each class's color."""

    def draw(n: int = 6, classes: tuple[str, ...] = ("blue", "green", "red")) -> Path:
        rng = np.random.default_rng(0)
        for hue, name in enumerate(classes):
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 80, (40, 50, 3), dtype=np.uint8)
                pixels[..., hue % 3] += 150
                Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
        return tmp_path / "photos"

    return draw


@pytest.fixture
def pets(tmp_path: Path) -> "FeatureStore":
    """A small store with all splits."""
    from cache.store import FeatureStore
    from tests.small_stores import write_store

    return FeatureStore.open(write_store(tmp_path / "features", "pets"))


@pytest.fixture
def zoo(tmp_path: Path) -> "FeatureStore":
    """A store of seven classes."""
    from tests.zoos import zoo_at

    return zoo_at(tmp_path / "toy" / "noise.h5")


@pytest.fixture
def colored(draw_photos: Callable[..., Path]) -> "Source":
    """The dataset of ten such photos of each class."""
    from cache.datasets.resolving import resolve_folder

    return resolve_folder(draw_photos(10))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode four images at a time."""
    from cache.extraction import new_images

    monkeypatch.setattr(new_images, "ROWS", 4)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of images in the order in which this process encodes them."""
    from cache.extraction import engines, shards

    paths: list[str] = []
    encode = shards.encode_shard

    def noted(cropping: Any, shard: Any, *rest: Any, **options: Any) -> Any:
        paths.extend(image.path for image in shard.images)
        return encode(cropping, shard, *rest, **options)

    monkeypatch.setattr(engines, "encode_shard", noted)
    return paths
