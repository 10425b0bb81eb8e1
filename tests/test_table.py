import json
from pathlib import Path

import pytest

from cache.errors import UserError
from cache.source import Item, resolve_table


def table(tmp_path: Path, text: str, name: str = "rows.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_class_names_are_numbered_in_alphabetical_order(tmp_path: Path) -> None:
    rows = "path,label,split\nb/1.png,dog,train\na/1.png,a cat,train\na/2.png,a cat,test\n"
    source = resolve_table(table(tmp_path, rows))
    assert source.classnames == ("a cat", "dog")
    assert source.splits == {
        "train": (Item("b/1.png", 1), Item("a/1.png", 0)),
        "test": (Item("a/2.png", 0),),
    }
    assert source.root == tmp_path
    assert source.origin == "rows.csv"
    assert source.dataset == "rows"
    assert source.exif


def test_json_lines_and_tabs_say_the_same(tmp_path: Path) -> None:
    rows = [("b.png", "dog", "Train"), ("a.png", "cat", "validation"), ("c.png", "cat", "TEST")]
    lines = "\n\n".join(
        json.dumps({"path": p, "label": label, "split": s, "id": 7}) for p, label, s in rows
    )
    tabs = "label\tpath\tsplit\n" + "".join(f"{label}\t{p}\t{s}\n" for p, label, s in rows)
    one = resolve_table(table(tmp_path, lines, "x.jsonl"))
    two = resolve_table(table(tmp_path, "\ufeff" + tabs, "x.tsv"))
    assert one.splits == two.splits
    assert one.classnames == two.classnames == ("cat", "dog")
    assert list(one.splits) == ["train", "val", "test"]


def test_whole_numbers_are_class_ids(tmp_path: Path) -> None:
    rows = "path,label,classname\n0.png,2,two\n1.png,0,\n2.png,1,one\n3.png,2,\n"
    source = resolve_table(table(tmp_path, rows))
    assert source.classnames == ("0", "one", "two")
    lines = "".join(json.dumps({"path": f"{i}.png", "label": i}) + "\n" for i in range(11))
    source = resolve_table(table(tmp_path, lines, "x.jsonl"))
    assert source.classnames[10] == "10"
    assert {i.path: i.label for items in source.splits.values() for i in items} == {
        f"{i}.png": i for i in range(11)
    }


def test_an_id_nobody_uses_stays_a_class(tmp_path: Path) -> None:
    source = resolve_table(table(tmp_path, "path,label\na.png,0\nb.png,2\nc.png,0\n"))
    assert source.classnames == ("0", "1", "2")


def test_numbers_among_names_are_names_and_that_is_said(tmp_path: Path) -> None:
    source = resolve_table(table(tmp_path, "path,label\na.png,911\nb.png,beetle\n"))
    assert source.classnames == ("911", "beetle")
    assert source.notes == ("1 labels of rows.csv are numbers and the rest names: all names",)


def test_without_splits_the_rule_is_ours(tmp_path: Path) -> None:
    rows = "".join(f"{c}{n}.png,{c}\n" for c in "ab" for n in range(10))
    source = resolve_table(table(tmp_path, "path,label\n" + rows))
    assert {split: len(items) for split, items in source.splits.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    assert source.origin == "rows.csv, stratified 50/20/30"


def test_paths_become_relative_to_the_table(tmp_path: Path) -> None:
    rows = f"path,label\n{tmp_path}/a/1.png,a\nb\\2.png,b\n./a/../a/3.png,a\n"
    source = resolve_table(table(tmp_path, rows))
    paths = {item.path for items in source.splits.values() for item in items}
    assert paths == {"a/1.png", "b/2.png", "a/3.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv has no rows"),
        ("path,label\n", "rows.csv has no rows"),
        ("file,label\na.png,x\n", "line 2: expected path and label, got no path"),
        ("path,label\na.png,x\nb.png,\n", "line 3: expected path and label, got no label"),
        ("path,label\na.png\n", "line 2: expected path and label, got no label"),
        ("path,label\na.png,0\nb.png,-1\n", "line 3: label -1 is out of range"),
        ("path,label\na.png,0\nb.png,900\n", "line 3: label 900 is out of range: .* 2 rows"),
        (
            "path,label,split\na.png,x,train\nb.png,y,dev\n",
            "line 3: split must be train, val or test on every line, got 'dev'",
        ),
        ("path,label,split\na.png,x,train\nb.png,y,\n", "line 3: split must be .*, got ''"),
        (
            "path,label,classname\na.png,0,x\nb.png,1,y\nc.png,0,z\n",
            "line 4: class 0 is called 'z' here and 'x' before",
        ),
        ("path,label\n/elsewhere/a.png,x\n", "line 2: path must be relative .*'/elsewhere/a.png'"),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = table(tmp_path, text)
    with pytest.raises(UserError, match=message):
        resolve_table(file)


def test_lines_that_are_no_json_objects_are_named(tmp_path: Path) -> None:
    good = '{"path": "a", "label": "x"}\n'
    with pytest.raises(UserError, match=r"x.jsonl, line 3: not valid JSON"):
        resolve_table(table(tmp_path, good + "\n{path\n", "x.jsonl"))
    with pytest.raises(UserError, match=r"x.jsonl, line 2: expected an object"):
        resolve_table(table(tmp_path, good + "[1]\n", "x.jsonl"))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the table .*absent.csv"):
        resolve_table(tmp_path / "absent.csv")
    with pytest.raises(UserError, match=r"must end in .csv, .tsv or .jsonl, got '.xlsx'"):
        resolve_table(table(tmp_path, "", "x.xlsx"))
    (tmp_path / "binary.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match=r"binary.csv is not a text table in UTF-8"):
        resolve_table(tmp_path / "binary.csv")
