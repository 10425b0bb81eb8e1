from pathlib import Path

import pytest

from cache.errors import UserError
from cache.manifest import load_manifest
from cache.source import Source, resolve


def found(root: Path, layout: str = "") -> Source:
    file = root / "mine.toml"
    file.write_text(
        'name = "mine"\ntitle = "Mine"\ntemplates = ["a photo of a {}."]\n[layout]\n'
        f'kind = "list-file"\ndirectory = "lists"\nimages = "photos"\n{layout}'
    )
    return resolve(load_manifest("", file), root)


def write(root: Path, **lists: str) -> None:
    (root / "lists" / "photos").mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (root / "lists" / f"{name}.txt").write_text(text)


SPLIT = 'split_file = "art_{split}.txt"\n'


def test_a_list_has_a_path_that_may_hold_spaces_and_a_label(tmp_path: Path) -> None:
    write(tmp_path, art_train="a b/1 2.jpg 1\n\nc/3.jpg 0\n", art_test="c/4.jpg 0\r\n")
    source = found(tmp_path, SPLIT)
    assert source.classnames == ("c", "a b")
    rows = {k: [(item.path, item.label) for item in v] for k, v in source.splits.items()}
    assert rows == {"train": [("a b/1 2.jpg", 1), ("c/3.jpg", 0)], "test": [("c/4.jpg", 0)]}
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
