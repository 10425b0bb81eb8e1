import json
from pathlib import Path

import pytest

from cache.datasets.preflight import check
from cache.datasets.resolving import resolve_table
from cache.datasets.source import Item
from cache.errors import UserError


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


@pytest.mark.parametrize("labels", [(1, 2, 3), (0, 10, 9), (0, 900, 901)])
def test_numbers_that_are_not_counted_from_0_are_names(
    tmp_path: Path, labels: tuple[int, ...]
) -> None:
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate((*labels, labels[0])))
    source = resolve_table(table(tmp_path, f"path,label\n{rows}"))
    assert source.classnames == tuple(str(label) for label in sorted(labels))
    assert source.notes == (
        f"labels of rows.csv are not 0..2, so they are names: {', '.join(source.classnames)}",
    )


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("filename,class", "'filename' as path, 'class' as label"),
        ("img,lbl", "'img' as path, 'lbl' as label"),
        ("File Path,Target", "'File Path' as path, 'Target' as label"),
        ("image_path,class_name", "'image_path' as path, 'class_name' as label"),
        ("id,breed", "'id' as path, 'breed' as label"),
    ],
)
def test_columns_have_many_names_and_it_is_said_which_were_taken(
    tmp_path: Path, header: str, told: str
) -> None:
    source = resolve_table(table(tmp_path, f"{header}\na.png,x\nb.png,y\n"))
    assert source.classnames == ("x", "y")
    assert source.notes == (f"columns taken: {told}",)


def test_the_surest_name_of_a_column_is_taken(tmp_path: Path) -> None:
    rows = "id,text,class_name,file_name,label\n7,hello,cat,a.png,0\n8,there,dog,b.png,1\n"
    source = resolve_table(table(tmp_path, rows))
    assert source.classnames == ("cat", "dog")
    assert {i.path for items in source.splits.values() for i in items} == {"a.png", "b.png"}


def test_columns_that_are_missing_are_told_with_those_there_are(tmp_path: Path) -> None:
    said = "expected a column for label, got the columns 'path', 'x'; label may be called label, la"
    with pytest.raises(UserError, match=said):
        resolve_table(table(tmp_path, "path,x\na.png,1\n"))
    said = "a column for path and label, got the columns 'a.png', 'cat'; path may be called path,"
    with pytest.raises(UserError, match=said):
        resolve_table(table(tmp_path, "a.png,cat\nb.png,dog\n"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_file_tells_its_separator_and_encoding(
    tmp_path: Path, separator: str, encoding: str, end: str
) -> None:
    rows = [("path", "label"), ("a.png", "caf\u00e9"), ("b.png", "dog, big")]
    text = end.join(separator.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    source = resolve_table(tmp_path / "x.csv")
    assert source.classnames == ("caf\u00e9", "dog, big")
    latin = ("x.csv is no UTF-8; it was read as Latin-1",)
    assert source.notes == (latin if encoding == "latin-1" else ())


def test_repeated_rows_are_one_image_and_two_classes_of_one_image_an_error(tmp_path: Path) -> None:
    rows = "path,label\na.png,x\nb.png,y\n"
    source = resolve_table(table(tmp_path, rows + "./a.png,x\nb.png,y\n"))
    assert sum(map(len, source.splits.values())) == 2
    assert source.notes == ("2 rows repeat an image of rows.csv, which counts once",)
    with pytest.raises(UserError, match=r"line 4: 'a.png' has the label 'y', and 'x' in .*line 2"):
        resolve_table(table(tmp_path, rows + "a.png,y\n"))


def test_a_column_that_may_name_splits_does_so_only_if_all_of_it_does(tmp_path: Path) -> None:
    source = resolve_table(table(tmp_path, "path,label,Usage\na.png,x,Training\nb.png,y,dev\n"))
    assert list(source.splits) == ["train", "val"]
    source = resolve_table(table(tmp_path, "path,label,fold\na.png,x,1\nb.png,y,train\n"))
    assert source.drawn
    assert source.notes[-1] == "the column 'fold' names no splits and is not used"


def test_ids_of_images_in_a_folder_beside_the_table_are_completed(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("00a", "00b"):
        (tmp_path / "train" / f"{name}.jpg").touch()
    source = resolve_table(table(tmp_path, "id,breed\n00a,pug\n00b,akita\n"))
    assert [i.path for items in source.splits.values() for i in items] == [
        "train/00a.jpg", "train/00b.jpg",
    ]  # fmt: skip
    assert source.notes[-1] == "paths stand for train/PATH.jpg"


def test_nesting_too_deep_is_one_line(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(UserError, match="line 1: expected flat JSON, got too deep a nesting"):
        resolve_table(table(tmp_path, deep, "x.jsonl"))
    source = resolve_table(table(tmp_path, f"path,label\na.png,{'1' * 5000}\nb.png,2\n"))
    assert len(source.classnames) == 2


def test_numbers_among_names_are_names_and_that_is_said(tmp_path: Path) -> None:
    source = resolve_table(table(tmp_path, "path,label\na.png,911\nb.png,beetle\n"))
    assert source.classnames == ("911", "beetle")
    assert source.notes == (
        "in rows.csv, 1 label is a number and the rest names: all are taken as names",
    )


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
        ("file,label\n,x\n", "line 2: expected path and label, got no path"),
        ("path,label\na.png,x\nb.png,\n", "line 3: expected path and label, got no label"),
        ("path,label\na.png\n", "line 2: expected path and label, got no label"),
        (
            "path,label,split\na.png,x,train\nb.png,y,spare\n",
            "line 3: split must be train, val or test on every line, got 'spare'",
        ),
        ("path,label,split\na.png,x,train\nb.png,y,\n", "line 3: split must be .*, got ''"),
        (
            "path,label,classname\na.png,0,x\nb.png,1,y\nc.png,0,z\n",
            "line 4: class '0' is called 'z' here and 'x' before",
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
    with pytest.raises(UserError, match=r"x.jsonl, line 3 is not valid JSON"):
        resolve_table(table(tmp_path, good + "\n{path\n", "x.jsonl"))
    with pytest.raises(UserError, match=r"x.jsonl, line 2: expected an object"):
        resolve_table(table(tmp_path, good + "[1]\n", "x.jsonl"))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the table .*absent.csv"):
        resolve_table(tmp_path / "absent.csv")
    with pytest.raises(UserError, match=r"must end in .csv, .tsv or .jsonl, got '.xlsx'"):
        resolve_table(table(tmp_path, "", "x.xlsx"))
    (tmp_path / "binary.csv").write_bytes(b"path,label\n\xff\0\xfe,1\n")
    with pytest.raises(UserError, match=r"binary.csv is not a text table in utf-8"):
        resolve_table(tmp_path / "binary.csv")


def test_a_path_too_long_to_exist_is_an_image_that_is_missing(tmp_path: Path) -> None:
    source = resolve_table(table(tmp_path, f"path,label\n{'a' * 5000},x\nb.png,y\n"))
    assert len(check(source).unreadable) == 2


def test_semicolons_between_labels_make_an_image_of_several(tmp_path: Path) -> None:
    rows = "path,label,split\na.png,cat; dog,train\nb.png,dog,train\nc.png,cat;ant;dog,test\n"
    lists = [("a.png", ["cat", "dog"], "train"), ("b.png", "dog", "train"),
             ("c.png", ["cat", "ant", "dog"], "test")]  # fmt: skip
    lines = "".join(json.dumps({"path": p, "label": x, "split": s}) + "\n" for p, x, s in lists)
    for name, content in (("rows.csv", rows), ("rows.jsonl", lines)):
        source = resolve_table(table(tmp_path, content, name))
        assert source.classnames == ("ant", "cat", "dog")
        assert source.multi_label
        assert source.splits == {  # the rarest label first
            "train": (Item("a.png", 1, (2,)), Item("b.png", 2)),
            "test": (Item("c.png", 0, (1, 2)),),
        }
        note = f"images of {name} may have several labels: there are semicolons between labels"
        assert source.notes == (note,)
        assert check(source).counts == {"train": (0, 1, 2), "test": (1, 1, 1)}


def test_rows_of_one_image_are_its_labels_only_where_that_is_asked(tmp_path: Path) -> None:
    file = table(tmp_path, "path,label\na.png,cat\nb.png,dog\na.png,dog\na.png,cat\n")
    with pytest.raises(UserError, match=r"line 4: .*one class: remove .* or extract with --multi"):
        resolve_table(file)
    source = resolve_table(file, multi_label=True)
    items = [item for found in source.splits.values() for item in found]
    assert sorted(item.path for item in items) == ["a.png", "b.png"]
    assert {item.path: sorted(item.labels) for item in items} == {"a.png": [0, 1], "b.png": [1]}


def test_several_labels_have_as_many_class_names(tmp_path: Path) -> None:
    good = "path,label,classname\na.png,0;1,cat;dog\nb.png,1,\n"
    assert resolve_table(table(tmp_path, good)).classnames == ("cat", "dog")
    with pytest.raises(UserError, match="line 2: expected a class name for each label, got 2"):
        resolve_table(table(tmp_path, good.replace("cat;dog", "cat")))
    with pytest.raises(UserError, match="line 3: expected path and label, got no label"):
        resolve_table(table(tmp_path, good.replace("b.png,1", "b.png,;")))
