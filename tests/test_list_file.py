from pathlib import Path

import pytest

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve
from cache.datasets.source import Source
from cache.errors import UserError


def found(root: Path, layout: str = "") -> Source:
    file = root / "mine.toml"
    file.write_text(
        'name = "mine"\ntitle = "Mine"\ntemplates = ["a photo of a {}."]\n[layout]\n'
        f'kind = "list-file"\ndirectory = "lists"\nimages = "photos"\n{layout}'
    )
    return resolve(load_manifest("", file), root)


def write(root: Path, *, ending: str = "txt", **lists: str) -> None:
    (root / "lists" / "photos").mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (root / "lists" / f"{name}.{ending}").write_text(text)


def rows(source: Source) -> dict[str, list[tuple[str, int]]]:
    return {k: [(item.path, item.label) for item in v] for k, v in source.splits.items()}


SPLIT = 'split_file = "art_{split}.txt"\n'


def test_a_list_has_a_path_that_may_hold_spaces_and_a_label(tmp_path: Path) -> None:
    write(tmp_path, art_train="a b/1 2.jpg 1\n\nc/3.jpg 0\n", art_test="c/4.jpg 0\r\n")
    source = found(tmp_path, SPLIT)
    assert source.classnames == ("c", "a b")
    assert rows(source) == {"train": [("a b/1 2.jpg", 1), ("c/3.jpg", 0)], "test": [("c/4.jpg", 0)]}
    assert source.root == tmp_path / "lists" / "photos"


def test_names_come_from_a_file_and_one_list_is_split(tmp_path: Path) -> None:
    lines = "".join(f"{i}.jpg {i % 2}\n" for i in range(20))
    write(tmp_path, all=lines, names="red ant\nbee\nfox\n")
    source = found(tmp_path, 'split_file = "all.txt"\nnames = "names.txt"\n')
    assert source.classnames == ("red ant", "bee", "fox")
    assert {split: len(items) for split, items in source.splits.items()} == {
        "train": 10, "val": 4, "test": 6
    }  # fmt: skip
    assert source.drawn


def test_each_split_may_have_a_list_of_its_own_name_and_checksum(tmp_path: Path) -> None:
    write(tmp_path, train800="a/1.jpg 0\n", val200="a/2.jpg 0\nb/3.jpg 1\n")
    layout = 'lists = { train = "train800.txt", val = "val200.txt" }\n'
    assert rows(found(tmp_path, layout)) == {
        "train": [("a/1.jpg", 0)], "val": [("a/2.jpg", 0), ("b/3.jpg", 1)]
    }  # fmt: skip
    sums = f'checksums.val = "sha256:{"0" * 64}"\n'
    with pytest.raises(UserError, match=r"val200.txt is not the declared file"):
        found(tmp_path, layout + sums)


def test_ids_of_json_lists_become_labels_in_the_order_of_the_train_list(tmp_path: Path) -> None:
    write(
        tmp_path,
        ending="json",
        train='{"x/1.jpg": "007", "y/2.jpg": "012", "z/3.jpg": "100"}',
        val='{"z/4.jpg": 100, "x/5.jpg": 7}',  # a class of it is missing, and shifts none
        test='{"y/6.jpg": "12"}',
    )
    source = found(tmp_path, 'split_file = "{split}.json"\n')
    assert source.classnames == ("x", "y", "z")
    assert rows(source)["val"] == [("z/4.jpg", 2), ("x/5.jpg", 0)]
    write(tmp_path, ending="json", val='{"x/1.jpg": 8}')
    with pytest.raises(UserError, match=r"val.json, 'x/1.jpg': no train image has class id 8"):
        found(tmp_path, 'split_file = "{split}.json"\n')


def test_folders_are_the_classes_where_labels_are_not(tmp_path: Path) -> None:
    write(
        tmp_path,
        art_train="u/c/1.jpg 337\nu/b/2.jpg 3\n",
        art_test="v/a/3.jpg 200\nv/c/4.jpg 200\n",
    )
    source = found(tmp_path, SPLIT + 'labels = "folders"\n')
    assert source.classnames == ("a", "b", "c")
    assert rows(source) == {
        "train": [("u/c/1.jpg", 2), ("u/b/2.jpg", 1)], "test": [("v/a/3.jpg", 0), ("v/c/4.jpg", 2)]
    }  # fmt: skip


def test_the_manifest_names_classes_of_which_the_train_list_lacks_some(tmp_path: Path) -> None:
    write(tmp_path, art_train="images/1.jpg 2\n", art_test="images/2.jpg 0\n")
    source = found(tmp_path, SPLIT + '[classnames]\nnames = ["ant", "bee", "cat"]\n')
    assert source.classnames == ("ant", "bee", "cat")
    with pytest.raises(UserError, match=r"line 1: label 2 has no name, for the manifest has 1"):
        found(tmp_path, SPLIT + '[classnames]\nnames = ["ant"]\n')


def test_a_missing_file_of_names_says_what_to_write(tmp_path: Path) -> None:
    write(tmp_path, art_test="1.jpg 0\n")
    with pytest.raises(UserError, match=r"no class names at .*birds.txt; put them there, one per"):
        found(tmp_path, SPLIT + 'names = "birds.txt"\n')


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("a/1.jpg zero\n", None, r"art_test.txt, line 1: expected a path and a whole number; got"),
        ("a/1.jpg 0\n7\n", None, r"line 2: expected a path and a whole number; got '7'"),
        ("a/1.jpg -1\n", None, r"line 1: expected a path and a whole number"),
        (" \n", None, r"art_test.txt lists no image"),
        ("a/1.jpg 0\nb/2.jpg 0\n", None, r"line 2: label 0 is of the folders 'a' and 'b'; name"),
        ("a/1.jpg 0\nb/2.jpg 2\n", None, r"no image has label 1, and labels go up to 2; name"),
        ("a/1.jpg 0\nb/2.jpg 2\n", "a\nb\n", r"line 2: label 2 has no name, for names.txt has 2"),
    ],
)
def test_a_list_that_cannot_be_is_refused_in_one_line(
    text: str, names: str | None, message: str, tmp_path: Path
) -> None:
    write(tmp_path, art_test=text, **({} if names is None else {"names": names}))
    with pytest.raises(UserError, match=message) as error:
        found(tmp_path, SPLIT + ("" if names is None else 'names = "names.txt"\n'))
    assert "\n" not in str(error.value)
