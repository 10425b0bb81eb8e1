import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from cache.datasets import addresses
from cache.datasets.layouts.shard_names import dataset_name, is_pattern
from cache.datasets.path_index import PathIndex
from cache.datasets.preflight import check
from cache.datasets.resolving import find, resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from cache.extract import extract
from cache.extraction.bank import Bank
from cache.extraction.digests import Digests
from cache.identity import Recipe
from cache.models.loading import load
from tests.shard_files import picture, samples, tar


def shards(folder: Path, *names: str, per_shard: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(tar(samples(range(i * per_shard, (i + 1) * per_shard))))
    (folder / "classnames.txt").write_text("apple\npear\n")
    return folder


def rows(source: Source) -> dict[str, list[tuple[str, int]]]:
    return {k: [(item.path, item.label) for item in v] for k, v in source.splits.items()}


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], str]]:
    """A function that puts bytes at a name of an object storage in memory; gives the URL."""
    system = fsspec.filesystem("memory")
    system.store.clear()

    def put(name: str, content: bytes) -> str:
        system.pipe_file(f"/bucket/{name}", content)
        return f"memory://bucket/{name}"

    yield put
    system.store.clear()


def test_splits_come_from_the_names_of_shards_and_classes_from_a_file_beside(
    tmp_path: Path,
) -> None:
    shards(tmp_path / "x", "fruit-train-00.tar", "fruit-test-00.tar")
    source = find(str(tmp_path / "x" / "fruit-{train,test}-{00..00}.tar"))
    assert source.dataset == "fruit"
    assert source.classnames == ("apple", "pear")
    assert rows(source) == {
        "train": [(f"fruit-train-00.tar/{n:04d}.png", n % 2) for n in range(4)],
        "test": [(f"fruit-test-00.tar/{n:04d}.png", n % 2) for n in range(4, 8)],
    }
    assert source.read("fruit-test-00.tar/0006.png") == Image.open(io.BytesIO(picture(6)))
    assert rows(find(str(tmp_path / "x" / "fruit-*-00.tar"))) == rows(source)


def test_shards_that_name_no_split_are_split(tmp_path: Path) -> None:
    shards(tmp_path / "fruit", "0.tar", "1.tar", per_shard=10)
    source = find(str(tmp_path / "fruit" / "{0..1}.tar"))
    assert {split: len(items) for split, items in source.splits.items()} == {
        "train": 10, "val": 4, "test": 6
    }  # fmt: skip
    assert (source.dataset, source.drawn) == ("fruit", True)


def test_a_folder_of_clip_benchmark_brings_names_and_templates(tmp_path: Path) -> None:
    root = shards(tmp_path / "wds_fruit", "train/0.tar", "train/1.tar", "test/0.tar", "test/1.tar")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\nmy {c}\n")
    for split, n in (("train", 2), ("test", 1)):
        (root / split / "nshards.txt").write_text(f"{n}\n")
    source = resolve_folder(root)
    assert source.templates == ("a {}.", "my {}")
    assert [path for path, _ in rows(source)["test"]][:1] == ["test/0.tar/0008.png"]
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 8, "test": 4}
    (root / "test" / "nshards.txt").write_text("3\n")
    with pytest.raises(UserError, match=r"1 shard is not there, the first .*test/2.tar; fetch"):
        resolve_folder(root)


def test_labels_are_numbers_or_names_of_a_cls_a_json_or_a_txt(tmp_path: Path) -> None:
    members = {
        "a.png": picture(1), "a.json": json.dumps({"label": 1, "class_name": "pear"}).encode(),
        "b.png": picture(2), "b.cls": b"0", "b.txt": b"apple",
        "c.png": picture(3), "c.cls": b"1", "c.json": b'{"label": 0, "class_name": "pear"}',
    }  # fmt: skip
    (tmp_path / "train.tar").write_bytes(tar(members))
    source = find(str(tmp_path / "train.tar"))
    assert (source.classnames, [item.label for item in source.splits["train"]]) == (
        ("apple", "pear"), [1, 0, 1]
    )  # fmt: skip
    (tmp_path / "train.tar").write_bytes(tar({"a.png": picture(1), "a.txt": b"fox"}))
    assert find(str(tmp_path / "train.tar")).classnames == ("fox",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(samples(range(4)))[:3000], "cut off or no tar file"),
        (tar(samples(range(4)))[: 512 * 4], "cut off or no tar file"),  # between two members
        (b"no tar", "cut off or no tar file"),
        (tar({"a.png": b"1", "a.jpg": b"2", "a.cls": b"0"}), "a has two images, a.png and a.jpg"),
        (tar({"a.png": b"1"}), "a.png has no label; give it one in a .cls"),
        (tar({"a.png": b"1", "a.cls": b"2"}), "label 2 has no name, for there are 2; labels start"),
        (tar({"a.png": b"1", "a.cls": b"fig"}), "'fig' is none of the 2 class names"),
        (tar({"a.png": b"1", "a.json": b"[1]"}), "its .json must be an object"),
        (tar({"a.png": b"1", "a.cls": b"\xff"}), "a.cls is no text in UTF-8"),
        (tar({"a.txt": b"1"}), "no image in"),
    ],
)
def test_a_shard_that_cannot_be_used_is_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "train.tar").write_bytes(content)
    (tmp_path / "classnames.txt").write_text("apple\npear\n")
    with pytest.raises(UserError, match=message) as error:
        find(str(tmp_path / "train.tar"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..2}.tar", "1 shard is not there, the first .*2.tar"),
        ("{2..0}.tar", "write the first number before the last"),
        ("{0,{1,2}}.tar", "not one in another"),
        ("no-*.tar", "nothing fits"),
        ("{0..1}{a,a}.tar", "names a shard twice"),
        ("{0.tar,classnames.txt}", "is a folder, a table|unknown dataset|no folder or table"),
        ("{0,train}.tar", "0.tar says no split, and those of other shards do"),
    ],
)
def test_a_pattern_that_cannot_be_is_one_line(pattern: str, message: str, tmp_path: Path) -> None:
    shards(tmp_path / "x", "0.tar", "1.tar", "train.tar")
    with pytest.raises(UserError, match=message):
        find(str(tmp_path / "x" / pattern))


def test_numbers_without_names_ask_for_a_file_of_names(tmp_path: Path) -> None:
    (shards(tmp_path / "x", "0.tar") / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"numbers without names; put classnames.txt into .*x, one"):
        find(str(tmp_path / "x" / "0.tar"))


def test_a_member_that_is_no_image_is_named_before_anything_is_encoded(tmp_path: Path) -> None:
    shards(tmp_path / "x", "train.tar")
    members = samples(range(4)) | {"0002.png": b"no image", "0001.png": picture(1)[:-100]}
    (tmp_path / "x" / "train.tar").write_bytes(tar(members))
    unreadable = check(find(str(tmp_path / "x" / "train.tar"))).unreadable
    assert [image.path for image in unreadable] == ["train.tar/0001.png", "train.tar/0002.png"]


def test_an_image_in_a_shard_is_the_same_image_as_in_a_folder(tmp_path: Path) -> None:
    shards(tmp_path / "x", "train.tar")
    for n in range(4):
        file = tmp_path / "files" / "train" / ("apple", "pear")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(n))
    digests = []
    for source in (find(str(tmp_path / "x" / "train.tar")), find(str(tmp_path / "files"))):
        with Bank.opened(tmp_path / "bank.sqlite") as bank:
            read = Digests(source, {"train": np.arange(4)}, bank, trust=False).read_all(1)
            digests.append({bytes(digest) for digest in read.of["train"]})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def test_a_shard_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    shards(tmp_path / "x", "train-0.tar", "train-1.tar")
    source = find(str(tmp_path / "x" / "train-{0..1}.tar"))
    assert source.changed_since(0, "train", range(8)) == []
    (tmp_path / "x" / "train-1.tar").write_bytes(tar(samples(range(4, 9))))
    assert source.changed_since(0, "train", range(8)) == [
        f"train-1.tar/{n:04d}.png" for n in range(4, 8)
    ]


def test_remote_shards_are_encoded_and_a_member_that_is_no_image_leaves_no_store(
    tmp_path: Path, memory: Callable[[str, bytes], str]
) -> None:
    memory("fruit/classnames.txt", b"apple\npear\n")
    url = memory("fruit/train-0.tar", tar(samples(range(4)) | {"0003.png": b"no image"}))
    source, store = find(url), tmp_path / "s" / "tiny.h5"
    assert source.dataset == "fruit"
    assert rows(find("memory://bucket/fruit")) == rows(source)
    encoder, recipe = load("tiny", device="cpu"), Recipe({})
    with pytest.raises(UserError, match=r"1 image cannot be read, the first train .*/0003.png"):
        extract(source, encoder, recipe, store)
    assert not store.exists()
    memory("fruit/train-0.tar", tar(samples(range(5))))
    with pytest.raises(UserError, match="4 images modified while the images were encoded"):
        extract(source, encoder, recipe, store, skip_unreadable=True)
    assert extract(find(url), encoder, recipe, store)


def test_a_remote_read_is_tried_again_and_few_run_at_a_time(
    memory: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = memory("x", b"0123456789")
    system = fsspec.filesystem("memory")
    cat: Any = type(system).cat_file
    running, most, fails = [0], [0], [2]

    def shaky(self: object, *where: object, **options: object) -> object:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            if fails[0]:
                fails[0] -= 1
                raise ConnectionError("reset by peer")
            time.sleep(0.005)  # so that others come meanwhile
            return cat(self, *where, **options)
        finally:
            running[0] -= 1

    monkeypatch.setattr(type(system), "cat_file", shaky)
    monkeypatch.setattr(addresses, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(addresses, "_connections", threading.BoundedSemaphore(1))
    assert addresses.read(url, 3, 4) == b"3456"
    threads = [threading.Thread(target=addresses.read, args=(url,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    fails[0] = 3
    with pytest.raises(
        UserError, match=r"cannot reach memory://bucket/x \(reset by peer\), 3 times"
    ):
        addresses.read(url)
    with pytest.raises(OSError, match="ends before byte 12"):
        addresses.read(url, 8, 4)
    with pytest.raises(UserError, match=r"cannot read nothing://x"):
        addresses.read("nothing://x")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("s3://bucket/im age/train-{000..012}.tar", "im-age"),
        ("imagenet1k-validation-*.tar", "imagenet1k"),
        ("gs://b/wds_cifar10/", "wds-cifar10"),
        ("fruit/data/train-{0..3}-of-00004.TAR", "fruit"),
    ],
)
def test_a_dataset_in_shards_has_the_name_of_the_shards_or_of_their_folder(
    pattern: str, name: str
) -> None:
    assert dataset_name(pattern) == name
    assert is_pattern(pattern)


def test_a_path_is_found_among_many_by_its_digest_and_may_not_be_there_twice() -> None:
    paths = [f"shard/{n}.jpg" for n in range(1000)]
    index = PathIndex(paths, (np.arange(1000) * 2, np.arange(1000) * 2 + 1))
    assert [index[path] for path in paths] == [(2 * n, 2 * n + 1) for n in range(1000)]
    with pytest.raises(KeyError):
        index["shard/1000.jpg"]
    with pytest.raises(UserError, match=r"two of 1,001 images have one name"):
        PathIndex([*paths, "shard/7.jpg"], [])
