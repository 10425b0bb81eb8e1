import os
from pathlib import Path

import pytest

from cache.errors import UserError
from cache.location import (
    default_root,
    find_store,
    find_stores,
    model_name,
    require_writable,
    store_path,
)
from cli import main
from tests.small_stores import write_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three stores, each newer than the one before."""
    for age, name in enumerate(("dtd/tiny.h5", "dtd/ViT-B-16-openai.h5", "mine/tiny.h5")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (age, age))
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "model", "expected", "others"),
    [
        (None, None, "mine/tiny.h5", True),
        ("dtd", None, "dtd/ViT-B-16-openai.h5", True),
        ("Describable_Textures", "tiny", "dtd/tiny.h5", False),
        ("dtd", "ViT-B-16,openai", "dtd/ViT-B-16-openai.h5", False),
        (None, "ViT-B-16/openai", "dtd/ViT-B-16-openai.h5", False),
        ("mine", None, "mine/tiny.h5", False),
    ],
)
def test_the_store_that_fits_and_of_several_the_newest(
    root: Path, dataset: str | None, model: str | None, expected: str, others: bool
) -> None:
    assert find_store(root, dataset, model) == (root / expected, others)


def test_a_stores_file_is_itself(root: Path) -> None:
    assert find_store(root / "dtd/tiny.h5") == (root / "dtd/tiny.h5", False)


def test_where_there_is_none_the_command_that_makes_it_is_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"there are dtd/ViT.*extract --dataset eurosat --model x"):
        find_store(root, "eurosat", "x")
    with pytest.raises(UserError, match=r"no such store under .*extract --dataset NAME"):
        find_store(root / "empty")


def test_the_command_that_makes_a_store_is_quoted(root: Path) -> None:
    with pytest.raises(UserError, match=r"extract --dataset 'my photos; rm x' --model tiny$"):
        find_store(root, "my photos; rm x", "tiny")


def test_a_folder_or_a_table_means_its_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "mine").mkdir(parents=True)
    (work / "dtd.csv").touch()
    monkeypatch.chdir(work)
    for dataset in ("mine", "./mine", "mine/", str(work / "mine"), "../work/mine"):
        assert find_store(root, dataset) == (root / "mine/tiny.h5", False)
    assert find_store(root, "dtd.csv", "tiny") == (root / "dtd/tiny.h5", False)


def test_a_place_must_be_writable_though_it_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    file, new = tmp_path / "file", tmp_path / "new" / "a"
    require_writable(files={"--a": file, "--c": None, "--d": new}, folders={"--b": tmp_path})
    require_writable(folders={"--a": new})
    with pytest.raises(UserError, match=r"write .*file/a: .*file is a file; give --a another"):
        require_writable(files={"--a": file / "a"})
    with pytest.raises(UserError, match=r"write .*file: .*file is a file; give --a another"):
        require_writable(folders={"--a": file})
    with pytest.raises(UserError, match=r"write .*: .* is a folder; give --a another place"):
        require_writable(files={"--a": tmp_path})
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)  # root may write anywhere
    for places in (
        {"files": {"--a": file}},
        {"files": {"--a": new}},
        {"folders": {"--a": tmp_path}},
    ):
        with pytest.raises(UserError, match=r"is read-only; give --a another place"):
            require_writable(**places)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_though_its_mode_says_so_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.access", lambda path, _: True)
    for places in ({"folders": {"--a": Path("/proc/x")}}, {"files": {"--a": Path("/proc/x/y")}}):
        with pytest.raises(UserError, match=r"/proc takes no files \(.+\); give --a another place"):
            require_writable(**places)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["fit", "gda", "--results", "o/r.jsonl"], "--results"),
        (["fit", "gda", "--save", "o/a.safetensors", "--results", "r.jsonl"], "--save"),
        (["train", "coop", "--dataset", "digits", "--out", "o"], "--out"),
        (["bench", "--out", "o"], "--out"),
        (["search", "--dataset", "digits", "--out", "o/c.toml"], "--out"),
        (["auto", "digits", "--out", "o"], "--out"),
        (["report", "--out", "o"], "--out"),
        (["extract", "--dataset", "digits", "--model", "none/such", "--store", "o"], "--store"),
        (["export", "none.safetensors", "--to", "onnx", "--out", "o"], "--out"),
    ],
)
def test_commands_look_at_where_they_write_before_the_work(
    arguments: list[str],
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSHOT_STORE", str(write_store(tmp_path / "s", "toys").parents[1]))
    Path("o").mkdir()
    monkeypatch.setattr("os.access", lambda path, how: Path(path).name != "o" or not how & os.W_OK)
    assert main(arguments) == 2
    assert f"o is read-only; give {option} another place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ViT-B-16,openai", "ViT-B-16/openai"),
        ("ViT-B-16, openai ", "ViT-B-16/openai"),
        ("ViT-B-16/openai", "ViT-B-16/openai"),
        ("tiny", "tiny"),
        ("hf-hub:a/b", "hf-hub:a/b"),
        ("local-dir:/a,b", "local-dir:/a,b"),
    ],
)
def test_a_model_has_one_name(text: str, name: str) -> None:
    assert model_name(text) == name


def test_stores_lie_by_dataset_and_model() -> None:
    root = Path("r")
    assert store_path(root, "dtd", "ViT-B-16,openai") == Path("r/dtd/ViT-B-16-openai.h5")
    assert store_path(root, "dtd", "hf-hub:a/b.c") == Path("r/dtd/hf-hub-a-b.c.h5")
    assert store_path(root, "my photos/é", "tiny") == Path("r/my-photos--/tiny.h5")
    here = store_path(root, "d", "local-dir:runs/clip")
    assert here.name.startswith("local-dir-clip-")
    assert here == store_path(root, "d", f"local-dir:{Path.cwd() / 'runs/clip'}")
    assert here != store_path(root, "d", "local-dir:other/clip")
    with pytest.raises(UserError, match="a name needs a letter or a digit"):
        store_path(root, "..", "tiny")


def test_stores_are_found_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("b/new.h5", "a/middle.h5", "c/old.h5")):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "a" / ".new.h5.1.tmp").touch()
    names = [path.name for path in find_stores(tmp_path)]
    assert names == ["new.h5", "middle.h5", "old.h5"]
    assert find_stores(tmp_path / "nowhere") == []
    monkeypatch.setenv("FEWSHOT_STORE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("FEWSHOT_STORE")
    assert default_root() == Path("features")
