import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from cache.datasets.preflight import check
from cache.datasets.resolving import find, resolve_folder
from cache.datasets.source import Source
from cache.errors import UserError
from tests.shard_files import picture


def table(numbers: range, names: tuple[str, ...] = ("apple", "pear"), **more: Any) -> Any:
    """Rows as Hugging Face's library writes them, a picture and a label of each number."""
    columns = {
        "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers],
        "label": [n % 2 for n in numbers],
        **more,
    }
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    said = {"huggingface": json.dumps({"info": {"features": features if names else {}}})}
    return pa.table(columns).replace_schema_metadata(said)


def save_parquet(file: Path, rows: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(rows, file, row_group_size=3)


def save_arrow(file: Path, rows: Any, *, stream: bool = True) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(file), "wb") as sink, new(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=3)


def numbers(source: Source, split: str) -> list[int]:
    """Which pictures the rows of a split are, by their bytes."""
    known = {picture(n): n for n in range(30)}
    contents = [source.images.content(item.path) for item in source.splits[split]]
    return [known[content] for content in contents if isinstance(content, bytes)]


def test_parquet_of_hugging_face_has_names_in_its_schema_and_splits_in_its_name(
    tmp_path: Path,
) -> None:
    save_parquet(tmp_path / "fruit/data/train-00000-of-00002.parquet", table(range(7)))
    save_parquet(tmp_path / "fruit/data/train-00001-of-00002.parquet", table(range(7, 9)))
    save_parquet(tmp_path / "fruit/data/test-00000-of-00001.parquet", table(range(9, 12)))
    source = find(str(tmp_path / "fruit/data/{train,test}-*.parquet"))
    assert (source.dataset, source.classnames) == ("fruit", ("apple", "pear"))
    assert numbers(source, "train") == list(range(9))
    assert numbers(source, "test") == [9, 10, 11]
    assert [item.label for item in source.splits["train"]] == [n % 2 for n in range(9)]
    assert source.splits["test"][2].path == "test-00000-of-00001.parquet/2"
    assert check(source).unreadable == ()
    assert resolve_folder(tmp_path / "fruit/data").splits == source.splits


@pytest.mark.parametrize("stream", [True, False])
def test_a_folder_that_save_to_disk_wrote_is_a_dataset(tmp_path: Path, stream: bool) -> None:
    root = tmp_path / "fruit"
    save_arrow(root / "train/data-00000-of-00001.arrow", table(range(8)), stream=stream)
    save_arrow(root / "test/data-00000-of-00001.arrow", table(range(8, 12)), stream=stream)
    save_arrow(root / "train/cache-1234.arrow", pa.table({"indices": [3]}))
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = resolve_folder(root)
    assert (source.dataset, source.classnames) == ("fruit", ("apple", "pear"))
    assert numbers(source, "train") == list(range(8))
    assert numbers(source, "test") == [8, 9, 10, 11]


def test_bytes_without_a_struct_and_names_in_a_column_do_as_well(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "img": [picture(n) for n in range(4)],
            "label": [1, 0, 1, 0],
            "class_name": ["pear", "apple", "pear", "apple"],
        }
    )
    save_parquet(tmp_path / "train.parquet", rows)
    source = find(str(tmp_path / "train.parquet"))
    assert source.classnames == ("apple", "pear")
    assert numbers(source, "train") == [0, 1, 2, 3]


def test_a_remote_table_is_read_like_a_local_one(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for ending, save in ((".parquet", save_parquet), (".arrow", save_arrow)):
        save(tmp_path / f"test{ending}", table(range(7)))
        system.pipe_file(f"/b/fruit/test{ending}", (tmp_path / f"test{ending}").read_bytes())
        source = find(f"memory://b/fruit/test{ending}")
        assert numbers(source, "test") == list(range(7))
    system.store.clear()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": ["a.jpg"], "label": [0]}, "must have one column of images' bytes; it has"),
        ({"image": [b"x"]}, "train.parquet/0 has no label; give it one in a .cls"),
        ({"image": [b"x"], "label": [None]}, "train.parquet/0 has no label"),
        ({"image": [b"x"], "label": [-1]}, "'-1' is none|are not 0"),
        ({"image": [b"x"], "label": [7]}, "numbers without names; put classnames.txt into"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(
    columns: dict[str, list[Any]], message: str, tmp_path: Path
) -> None:
    if columns.get("label") == [-1]:
        (tmp_path / "classnames.txt").write_text("apple\npear\n")
    save_parquet(tmp_path / "train.parquet", pa.table(columns))
    with pytest.raises(UserError, match=message) as error:
        find(str(tmp_path / "train.parquet"))
    assert "\n" not in str(error.value)


def test_a_table_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    for name, save in (("train.parquet", save_parquet), ("train.arrow", save_arrow)):
        save(tmp_path / name, table(range(8)))
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-900])
        with pytest.raises(UserError, match=rf"{name}.*; get it again") as error:
            find(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_cells_without_an_image_are_named_and_shards_must_agree(tmp_path: Path) -> None:
    rows = table(range(3)).to_pylist()
    rows[1]["image"]["bytes"] = None
    rows[2]["image"]["bytes"] = b"no image"
    bad = pa.Table.from_pylist(rows, schema=table(range(3)).schema)
    save_parquet(tmp_path / "train-0.parquet", bad)
    found = check(find(str(tmp_path / "train-0.parquet"))).unreadable
    assert [(image.path, image.reason[:30]) for image in found] == [
        ("train-0.parquet/1", "no bytes in the column image, "),
        ("train-0.parquet/2", "not an image in any format tha"),
    ]
    save_parquet(tmp_path / "train-1.parquet", table(range(3), ("fig", "pear")))
    with pytest.raises(UserError, match=r"other class names than train-0.parquet; give"):
        find(str(tmp_path / "train-*.parquet"))


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'fewshot-clip\[parquet\]'"):
        find(str(tmp_path / "train.parquet"))
