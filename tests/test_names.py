import random
import string
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from cache.errors import UserError
from cache.files.names import LONGEST, name_of, safe_name
from cache.location import store_path

ODD = [
    "x/../../victim", "../up", "/etc/passwd", "a\\..\\b", "C:\\x", ".hidden", "a b", "line\nbreak",
    "nul\0byte", "über", "猫", "犬", "\u202edesrever", "$(touch x)", "-rf", "x" * 500, "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_safe_name_is_one_part_of_a_path_whatever_it_was(name: str) -> None:
    safe = safe_name(name)
    for path in (PurePosixPath(safe), PureWindowsPath(safe)):
        assert path.parts == (safe,)
    assert not safe.startswith(".")
    assert set(safe) <= {*string.ascii_letters, *string.digits, *"._-"}
    assert len(safe) <= LONGEST + 9


def test_names_of_any_characters_are_made_safe() -> None:
    rng = random.Random(0)
    for _ in range(500):
        codes = [rng.choice((rng.randrange(128), rng.randrange(0xD800))) for _ in range(9)]
        name = "".join(map(chr, codes))
        try:
            safe = safe_name(name)
        except UserError:
            assert not name.strip(".")
            continue
        assert PurePosixPath(safe).parts == (safe,)


@pytest.mark.parametrize("name", ["dtd", "ViT-B-16", "a_b.c-1"])
def test_a_safe_name_stays(name: str) -> None:
    assert safe_name(name) == name


def test_names_of_which_nothing_readable_is_left_stay_apart() -> None:
    assert len({safe_name(name) for name in ("猫", "犬", "x" * 500, "x" * 501)}) == 4


@pytest.mark.parametrize("name", ["", ".", "..."])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="a name needs a letter or a digit"):
        safe_name(name)


@pytest.mark.parametrize("name", ["x/../../victim", "/abs", "a\0b", "y" * 400])
def test_no_name_leads_a_store_out_of_its_folder(tmp_path: Path, name: str) -> None:
    path = store_path(tmp_path, name, name)
    assert path.parent.parent == tmp_path
    path.parent.mkdir()
    path.touch()


def test_a_folder_is_called_by_its_own_name_in_ascii(tmp_path: Path) -> None:
    assert name_of(tmp_path / "my photos") == "my-photos"
    assert name_of(tmp_path / "猫") != name_of(tmp_path / "犬")
