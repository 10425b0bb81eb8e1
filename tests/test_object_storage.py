import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("moto")
pytest.importorskip("s3fs")
pytest.importorskip("werkzeug")

import fsspec

import cli
from cache.datasets import addresses
from cache.datasets.resolving import find
from cache.errors import UserError
from cache.extract import extract
from cache.extraction.shards import CENTER, Cropping, Shard, Wanted, encode_shard
from cache.identity import Recipe
from cache.models.loading import load
from tests.object_storage import KEY, ObjectStorage
from tests.shard_files import samples, tar

pytestmark = pytest.mark.filterwarnings("ignore")  # of botocore and moto


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStorage]:
    storage = ObjectStorage()
    yield storage
    storage.close()


@pytest.fixture
def storage(server: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStorage]:
    """The server with two shards in s3://bucket/fruit, for whoever reads the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own repetitions
    monkeypatch.setattr(addresses, "WAITS", (0.0, 0.0))
    connect_again()
    system = fsspec.filesystem("s3")
    if not system.exists("bucket"):
        system.mkdir("bucket")
    for name, content in shards().items():
        system.pipe_file(f"bucket/fruit/{name}", content)
    yield server
    server.fails = 0
    connect_again()


def connect_again() -> None:
    addresses.file_system.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def shards() -> dict[str, bytes]:
    made = {f"train-{i}.tar": tar(samples(range(4 * i, 4 * i + 4))) for i in range(2)}
    return made | {"classnames.txt": b"apple\npear\n"}


@pytest.mark.usefixtures("storage")
def test_shards_on_s3_give_the_store_of_shards_on_disk(tmp_path: Path) -> None:
    (tmp_path / "fruit").mkdir()
    for name, content in shards().items():
        (tmp_path / "fruit" / name).write_bytes(content)
    encoder, recipe = load("tiny", device="cpu"), Recipe({})
    stores = tmp_path / "remote.h5", tmp_path / "local.h5"
    for place, store in zip(("s3://bucket", tmp_path), stores, strict=True):
        extract(find(f"{place}/fruit/train-{{0..1}}.tar"), encoder, recipe, store, workers=4)
    assert stores[0].read_bytes() == stores[1].read_bytes()


@pytest.mark.usefixtures("storage")
def test_a_shard_that_was_replaced_after_a_listing_is_noticed() -> None:
    source = find("s3://bucket/fruit/*.tar")
    assert source.changed_since(0, "train", range(8)) == []
    someone_else = fsspec.filesystem("s3", skip_instance_cache=True)
    someone_else.pipe_file("bucket/fruit/train-1.tar", tar(samples(range(9, 15))))
    assert len(source.changed_since(0, "train", range(8))) == 4


def test_reads_from_s3_are_repeated_and_few_run_at_a_time(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_connections", threading.BoundedSemaphore(2))
    monkeypatch.setattr(addresses, "WAITS", (0.0,) * 3)
    storage.fails, storage.most = 3, 0
    monkeypatch.setattr(storage, "seconds", 0.02)  # so that others come meanwhile
    found: list[bytes] = []
    url = "s3://bucket/fruit/classnames.txt"
    threads = [
        threading.Thread(target=lambda: found.append(addresses.read(url, 6, 4))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"pear"] * 8
    assert (storage.fails, storage.most) == (0, 2)


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("key", "dataset", "message"),
    [
        ("wrong", "fruit/train-0.tar", "access to s3://bucket/fruit/train-0.tar is denied (Forb"),
        (
            "wrong",
            "fruit/train-*.tar",
            "is denied (Forbidden); check the credentials and the region",
        ),
        ("", "fruit/train-0.tar", "train-0.tar is denied (Unable to locate credentials); check"),
        (KEY, "fruit/train-2.tar", "1 shard is not there, the first s3://bucket/fruit/train-2.tar"),
        (KEY, "../none/train-0.tar", "1 shard is not there, the first s3://none/train-0.tar"),
    ],
)
def test_what_is_not_there_or_not_allowed_on_s3_is_one_line(
    key: str,
    dataset: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if not key:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    connect_again()
    url = f"s3://{dataset[3:]}" if dataset.startswith("../") else f"s3://bucket/{dataset}"
    command = ["extract", "--dataset", url, "--model", "tiny", "--store", str(tmp_path)]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_storage_that_does_not_answer_stops_the_run_and_leaves_no_image_out(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    source, store = find("s3://bucket/fruit/train-{0..1}.tar"), tmp_path / "s.h5"
    storage.fails = 10_000
    with pytest.raises(UserError, match=r"\Acannot reach s3://bucket/fruit/.*, 3 times; check"):
        extract(source, load("tiny", device="cpu"), Recipe({}), store, skip_unreadable=True)
    assert not store.exists()


@pytest.mark.usefixtures("storage")
def test_access_that_ends_while_images_are_decoded_is_no_fault_of_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = find("s3://bucket/fruit/train-{0..1}.tar")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "expired")
    connect_again()
    shard = Shard(0, (Wanted("train-0.tar/0001.png", (CENTER,)),))
    with pytest.raises(UserError, match=r"access to s3:.* is denied"):
        encode_shard(Cropping(source, 8, (0.5, 1.0), 0), shard, load("tiny", device="cpu"))
