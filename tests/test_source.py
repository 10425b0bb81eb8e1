import hashlib
import json
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cache.datasets.manifest import load_manifest
from cache.datasets.manifest_file import Layout, Manifest
from cache.datasets.resolving import data_root, dataset_status, find, resolve
from cache.datasets.source import Item, Source
from cache.errors import UserError

SPLIT = {
    "train": [["cat/1.png", 1, "a_cat"], ["ant/1.png", 0, "ant"]],
    "val": [["ant/2.png", 0, "ant"]],
    "test": [["cat/2.png", 1, "a_cat"]],
}
PUBLISHED = {  # rows of train, val and test, and the first label of each
    "caltech101": ((4128, 1649, 2465), (0, 0, 0)),
    "dtd": ((2820, 1128, 1692), (0, 0, 0)),
    "eurosat": ((13500, 5400, 8100), (0, 0, 0)),
    "oxford_flowers": ((4093, 1633, 2463), (76, 76, 76)),
    "oxford_pets": ((2944, 736, 3669), (0, 0, 0)),
    "stanford_cars": ((6509, 1635, 8041), (13, 13, 180)),
    "ucf101": ((7639, 1898, 3783), (0, 0, 0)),
}


def draw(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (10, 20, 30)).save(root / path)


def coop(tmp_path: Path, content: bytes = b"", checksum: str | None = None) -> Manifest:
    """A made-up dataset of two classes in CoOp's layout, and its manifest."""
    content = content or json.dumps(SPLIT).encode()
    draw(tmp_path / "dtd" / "images", [f"{c}/{n}.png" for c in ("ant", "cat") for n in (1, 2)])
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_bytes(content)
    manifest = load_manifest("dtd")
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}" if checksum is None else checksum
    return replace(
        manifest,
        n_classes=2,
        sizes={"train": 2, "val": 1, "test": 1},
        layout=replace(manifest.layout, checksum=digest),
    )


def test_a_split_file_gives_rows_in_its_own_order(tmp_path: Path) -> None:
    manifest = coop(tmp_path)
    source = resolve(manifest, tmp_path)
    assert source.dataset == "dtd"
    assert source.classnames == ("ant", "a_cat")
    assert source.splits == {
        "train": (Item("cat/1.png", 1), Item("ant/1.png", 0)),
        "val": (Item("ant/2.png", 0),),
        "test": (Item("cat/2.png", 1),),
    }
    assert source.origin == "split_zhou_DescribableTextures.json"
    assert source.root == tmp_path / "dtd" / "images"
    assert source.templates == ("{} texture.",)
    assert source.manifest_digest == manifest.digest
    assert source.sizes == {"train": 2, "val": 1, "test": 1}
    assert not source.exif


def test_images_are_read_and_measured(tmp_path: Path) -> None:
    source = resolve(coop(tmp_path), tmp_path)
    image = source.read("ant/1.png")
    assert image.mode == "RGB"
    assert image.size == (3, 2)
    assert source.size("ant/1.png") == (source.root / "ant/1.png").stat().st_size
    with pytest.raises(FileNotFoundError):
        source.size("ant/9.png")
    with pytest.raises(OSError, match="no file at"):
        source.read("ant/9.png")


def test_a_source_goes_to_other_processes(tmp_path: Path) -> None:
    source = resolve(coop(tmp_path), tmp_path)
    assert pickle.loads(pickle.dumps(source)) == source


def test_relative_data_roots_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = coop(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert resolve(manifest, Path()).root == tmp_path / "dtd" / "images"


def test_dropping_paths_leaves_the_rest_in_order(tmp_path: Path) -> None:
    source = resolve(coop(tmp_path), tmp_path).without(["cat/1.png", "ant/2.png"])
    assert source.splits["train"] == (Item("ant/1.png", 0),)
    assert source.splits["val"] == ()
    assert source.splits["test"] == (Item("cat/2.png", 1),)
    assert source.sizes == {}


def test_a_changed_split_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    manifest = coop(tmp_path)
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    content = file.read_bytes().replace(b"cat/2", b"cat/1")
    file.write_bytes(content)
    got = hashlib.sha256(content).hexdigest()
    message = f"expected {manifest.layout.checksum}, got sha256:{got}"
    with pytest.raises(UserError, match=message):
        resolve(manifest, tmp_path)
    unchecked = replace(manifest, layout=replace(manifest.layout, checksum=""))
    assert resolve(unchecked, tmp_path).splits["test"] == (Item("cat/1.png", 1),)


def test_git_blob_checksums_are_those_of_git_hash_object(tmp_path: Path) -> None:
    content = json.dumps(SPLIT).encode()
    header = f"blob {len(content)}".encode() + bytes(1)
    digest = hashlib.sha1(header + content).hexdigest()
    right = coop(tmp_path, content, f"git-blob-sha1:{digest}")
    assert len(resolve(right, tmp_path).splits["train"]) == 2
    wrong = coop(tmp_path, content, f"git-blob-sha1:{'0' * 40}")
    with pytest.raises(UserError, match=f"expected git-blob-sha1:0+, got git-blob-sha1:{digest}"):
        resolve(wrong, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[]", "expected lists of rows under train, val and test, got none under train, val"),
        (b'{"train": [], "val": [], "test": {}}', "got none under test"),
        (b'{"train": [["a", 0]], "val": [], "test": []}', r"train\[0\]: expected .*got \['a', 0\]"),
        (b'{"train": [["a", "0", "x"]], "val": [], "test": []}', r"train\[0\]: expected"),
        (b'{"train": [["a", true, "x"]], "val": [], "test": []}', r"train\[0\]: expected"),
        (
            b'{"train": [["a", 0, "x"]], "val": [["b", 0, "y"]], "test": []}',
            "class 0 is called both 'x' and 'y'",
        ),
        (
            b'{"train": [["a", 0, "x"], ["b", 2, "y"]], "val": [], "test": []}',
            "from 0 to 1 without a gap, got 0 to 2",
        ),
        (
            b'{"train": [["a", 0, "x"]], "val": [], "test": []}',
            "dtd must have 2 classes, got 1 from split_zhou",
        ),
    ],
)
def test_a_split_file_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    manifest = coop(tmp_path, content)
    with pytest.raises(UserError, match=message):
        resolve(manifest, tmp_path)


def test_a_dataset_that_is_not_there_says_where_it_was_looked_for_and_how_to_get_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError) as error:
        resolve(load_manifest("dtd"), tmp_path)
    message = str(error.value)
    assert f"{tmp_path}/dtd/split_zhou_DescribableTextures.json" in message
    assert f"{tmp_path}/dtd/dtd" in message
    assert "dtd-r1.0.1.tar.gz" in message
    assert "\n" not in message


def test_images_without_their_split_file_are_told_from_nothing_at_all(tmp_path: Path) -> None:
    draw(tmp_path / "dtd" / "images", ["banded/1.png"])
    with pytest.raises(UserError, match="dtd has images but no split file at"):
        resolve(load_manifest("dtd"), tmp_path)


def test_a_missing_data_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data root at .*/absent; give .* --data-root"):
        resolve(load_manifest("dtd"), tmp_path / "absent")


def test_a_split_file_without_its_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text("{}")
    with pytest.raises(UserError, match=r"the images it lists are not: no folder .*dtd/images"):
        resolve(load_manifest("dtd"), tmp_path)


def test_the_data_root_is_the_option_then_the_variable_then_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEWSHOT_DATA", "~/sets")
    assert data_root(Path("here")) == Path("here")
    assert data_root(None) == Path.home() / "sets"
    monkeypatch.setenv("FEWSHOT_DATA", "")
    assert data_root(None) == Path("data")


def test_status_says_what_is_on_disk(tmp_path: Path) -> None:
    dtd = load_manifest("dtd")
    assert dataset_status(load_manifest("digits"), tmp_path) == "bundled"
    assert dataset_status(dtd, tmp_path / "absent") == "not on disk"
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").touch()
    assert dataset_status(dtd, tmp_path) == "split file without images"
    (tmp_path / "dtd" / "images").mkdir()
    assert dataset_status(dtd, tmp_path) == "on disk (CoOp split)"
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    assert dataset_status(dtd, tmp_path) == "images without split file"
    (tmp_path / "dtd" / "dtd" / "labels").mkdir(parents=True)
    (tmp_path / "dtd" / "dtd" / "labels" / "train1.txt").touch()
    assert dataset_status(dtd, tmp_path) == "on disk (torchvision split)"
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    assert dataset_status(load_manifest("eurosat"), tmp_path) == "on disk (own split)"
    (tmp_path / "imagenet" / "images" / "val").mkdir(parents=True)
    assert dataset_status(load_manifest("imagenet"), tmp_path) == "on disk"
    assert dataset_status(load_manifest("imagenet_a"), tmp_path) == "not on disk"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_splits_have_published_counts_and_order(
    shared: Path, tmp_path: Path, name: str
) -> None:
    manifest = load_manifest(name)
    layout = manifest.layout
    (tmp_path / layout.directory / layout.images).mkdir(parents=True)
    file = shared / "splits" / layout.split_file
    (tmp_path / layout.directory / layout.split_file).symlink_to(file)
    source = resolve(manifest, tmp_path)
    counts, first_labels = PUBLISHED[name]
    assert tuple(len(source.splits[s]) for s in ("train", "val", "test")) == counts
    assert tuple(source.splits[s][0].label for s in ("train", "val", "test")) == first_labels
    assert {split: len(items) for split, items in source.splits.items()} == dict(manifest.sizes)
    assert len(source.classnames) == manifest.n_classes
    published = json.loads(file.read_bytes())
    for split, items in source.splits.items():
        rows = [[i.path, i.label, source.classnames[i.label]] for i in items]
        assert rows == published[split]


def test_one_changed_byte_of_a_published_split_is_noticed(shared: Path, tmp_path: Path) -> None:
    manifest = load_manifest("dtd")
    content = bytearray((shared / "splits" / manifest.layout.split_file).read_bytes())
    content[1000] ^= 1
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    (tmp_path / "dtd" / manifest.layout.split_file).write_bytes(content)
    with pytest.raises(UserError, match="is not the declared file: expected sha256:f26e"):
        resolve(manifest, tmp_path)


def test_aircraft_uses_its_own_lists(tmp_path: Path) -> None:
    home = tmp_path / "fgvc_aircraft"
    home.mkdir()
    (home / "variants.txt").write_text("707-320\nBoeing 717\n")
    (home / "images_variant_train.txt").write_text("0034309 Boeing 717\n1025794 707-320\n")
    (home / "images_variant_val.txt").write_text("2 707-320\n")
    (home / "images_variant_test.txt").write_text("3 Boeing 717\n")
    manifest = replace(load_manifest("fgvc"), n_classes=2)
    source = resolve(manifest, tmp_path)
    assert source.classnames == ("707-320", "Boeing 717")
    assert source.splits["train"] == (Item("0034309.jpg", 1), Item("1025794.jpg", 0))
    assert source.splits["test"] == (Item("3.jpg", 1),)
    assert source.root == home / "images"
    (home / "images_variant_val.txt").write_text("2 707-320\n4 Concorde\n")
    with pytest.raises(UserError, match=r"images_variant_val.txt, line 2: .*'4 Concorde'"):
        resolve(manifest, tmp_path)
    (home / "images_variant_val.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*images_variant_val.txt"):
        resolve(manifest, tmp_path)


def test_a_manifest_of_ones_own_can_name_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "mine" / "pics", [f"{c}/{n}.png" for c in "a-b" for n in range(10)])
    layout = Layout("folder", "mine", "pics", "", "")
    manifest = replace(
        load_manifest("digits"), name="mine", n_classes=2, sizes={}, layout=layout,
        rename={"a": "ant"}, drop=("-",), templates=("the {}.",),
    )  # fmt: skip
    source = resolve(manifest, tmp_path)
    assert source.classnames == ("ant", "b")
    assert source.templates == ("the {}.",)
    assert source.exif
    assert source.origin == "folders, stratified 50/20/30"
    assert dataset_status(manifest, tmp_path) == "on disk"
    with pytest.raises(UserError, match="mine must have 3 classes, got 2 from folders"):
        resolve(replace(manifest, n_classes=3), tmp_path)


def test_a_manifest_of_ones_own_can_name_a_table(tmp_path: Path) -> None:
    draw(tmp_path / "mine", [f"{n}.png" for n in range(4)])
    rows = "".join(f"{n}.png,{'ab'[n % 2]},{'train' if n < 2 else 'test'}\n" for n in range(4))
    (tmp_path / "mine" / "rows.csv").write_text("path,label,split\n" + rows)
    layout = Layout("table", "mine", "", "rows.csv", "")
    manifest = replace(
        load_manifest("digits"), name="mine", n_classes=2, sizes={}, layout=layout,
        rename={"b": "bee"},
    )  # fmt: skip
    source = resolve(manifest, tmp_path)
    assert source.classnames == ("a", "bee")
    assert source.splits["test"] == (Item("2.png", 0), Item("3.png", 1))
    assert dataset_status(manifest, tmp_path) == "on disk"
    checked = replace(manifest, layout=replace(layout, checksum=f"sha256:{'0' * 64}"))
    with pytest.raises(UserError, match=r"rows.csv is not the declared file: expected sha256:000"):
        resolve(checked, tmp_path)


def test_a_source_can_be_made_by_hand() -> None:
    source = Source("x", Path(), ("a", "b"), {}, ("{}",), "hand")
    assert source.notes == ()
    assert source.images.place("a.png") == "a.png"


def test_a_folder_and_a_table_of_ones_own_are_found_by_name_in_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "root" / "beasts", ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    (tmp_path / "root" / "listed.csv").write_text(
        "path,label\nbeasts/cat/1.png,cat\nbeasts/dog/1.png,dog\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("beasts", "listed"):
        found = find(name, root=tmp_path / "root")
        assert (found.dataset, found.classnames) == (name, ("cat", "dog"))
    with pytest.raises(UserError, match=r"unknown dataset 'other'.*; nor is it .* here or in root"):
        find("other", root=Path("root"))
