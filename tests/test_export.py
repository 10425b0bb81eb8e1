import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.errors import UserError
from cache.models.encoder import Encoder
from cli import main
from fewshot.adapters.export import exporting
from fewshot.adapters.export.exporting import export
from tests.toy_adapters import NAMES, fitted_adapter


@pytest.fixture
def path(encoder: Encoder, tmp_path: Path) -> Path:
    fitted_adapter(encoder, "gda").save(tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_folder_is_named_after_the_adapter_and_nothing_else_is_left(path: Path) -> None:
    folder = export(path, "open_clip")
    assert names(path.parent) == ["pets-open_clip", "pets.safetensors"]
    assert names(folder) == [
        "README.md", "classes.json", "classifier.safetensors", "export.json",
        "open_clip_config.json", "open_clip_model.safetensors",
    ]  # fmt: skip
    assert json.loads((folder / "classes.json").read_text(encoding="utf-8")) == list(NAMES)


def test_an_export_replaces_one_that_nobody_has_changed(path: Path) -> None:
    folder = export(path, "open_clip")
    before = (folder / "README.md").read_bytes()
    assert export(path, "open_clip") == folder
    assert (folder / "README.md").read_bytes() == before


def test_an_export_that_somebody_has_changed_is_kept(path: Path) -> None:
    folder = export(path, "open_clip")
    (folder / "README.md").write_text("license: mit")
    with pytest.raises(UserError, match=r"export of which README\.md has been changed since"):
        export(path, "open_clip")
    assert (folder / "README.md").read_text() == "license: mit"


@pytest.mark.parametrize("with_export", [True, False])
def test_a_folder_with_something_else_in_it_is_kept(path: Path, with_export: bool) -> None:
    folder = path.parent / "out"
    if with_export:
        export(path, "open_clip", folder)
    (folder / "thesis").mkdir(parents=True)
    with pytest.raises(UserError, match=r"out holds thesis, which no export wrote; give --out"):
        export(path, "open_clip", folder)
    assert "thesis" in names(folder)


def test_an_empty_folder_is_filled_and_a_file_refused(path: Path) -> None:
    (path.parent / "empty").mkdir()
    assert "README.md" in names(export(path, "open_clip", path.parent / "empty"))
    with pytest.raises(UserError, match=r"pets.safetensors is a file; give --out another place"):
        export(path, "open_clip", path)


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(path, "open_clip")
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def fail(adapter: Any, encoder: Any, folder: Path) -> str:
        (folder / "half").write_text("written")
        raise UserError("logits are off")

    monkeypatch.setitem(exporting.WRITERS, "open_clip", fail)
    for out in (folder, path.parent / "new"):
        with pytest.raises(UserError, match="logits are off"):
            export(path, "open_clip", out)
    assert names(path.parent) == ["pets-open_clip", "pets.safetensors"]
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_a_model_under_another_name_will_do_if_its_weights_are_the_same(
    path: Path, random_vit: Path, random_resnet: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_vit, tmp_path / "moved")
    export(path, "open_clip", model=f"local-dir:{tmp_path / 'moved'}")
    with pytest.raises(UserError, match="this adapter was made with"):
        export(path, "open_clip", tmp_path / "other", model=f"local-dir:{random_resnet}")
    assert not (tmp_path / "other").exists()


def test_mistakes_are_said_in_one_line(encoder: Encoder, path: Path) -> None:
    with pytest.raises(UserError, match="unknown export target 'onxx'; did you mean 'onnx'"):
        export(path, "onxx")
    with pytest.raises(UserError, match="an adapter in memory has no name to export under"):
        export(fitted_adapter(encoder, "gda"), "open_clip")
    unheard_of = replace(fitted_adapter(encoder, "gda"), method="gdaa")
    with pytest.raises(UserError, match="unknown method 'gdaa'; did you mean 'gda'"):
        export(unheard_of, "open_clip", path.parent / "out")
    with pytest.raises(UserError, match="transclip cannot be exported"):
        export(fitted_adapter(encoder, "transclip"), "open_clip", path.parent / "out")


def test_the_command_prints_the_folder_and_refuses_in_one_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(path), "--to", "open_clip"]) == 0
    assert capsys.readouterr().out == f"{path.with_name('pets-open_clip')}\n"
    assert main(["export", str(path), "--to", "tflite"]) == 2
    said = capsys.readouterr().err
    assert "'tflite' is not one of 'open_clip', 'onnx', 'clip-lora'" in said
    assert said.count("\n") == 1


def test_the_umask_decides_who_reads_an_export(path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = export(path, "open_clip")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o640}
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are posix's")
def test_a_full_disk_is_one_line_and_leaves_the_export_that_was_there(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    folder = export(path, "open_clip")
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes that a file may have
    try:
        codes = [main(["export", str(path), "--to", "open_clip", "--out", str(out)])
                 for out in (folder, path.parent / "new")]  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert codes == [2, 2]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("fewshot: File too large") for line in said)
    assert names(path.parent) == ["pets-open_clip", "pets.safetensors"]
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
