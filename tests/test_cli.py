import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import typer

import cli
from cache.errors import UserError
from cache.store import FeatureStore
from cli import main
from tests.typed import extracted, refusal

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize("words", [["--store=~/s"], ["--store", "~/s"]])
def test_a_tilde_is_the_home_folder_where_the_shell_leaves_it(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"no such store under {tmp_path}/home/s" in refusal(capsys, "fit", "gda", *words)
    monkeypatch.setenv("FEWSHOT_STORE", "~/s")
    assert f"no such store under {tmp_path}/home/s" in refusal(capsys, "fit", "gda")
    assert f"no store at {tmp_path}/home/s/a.h5" in refusal(capsys, "inspect", "~/s/a.h5")
    with pytest.raises(UserError, match=f"no store at {tmp_path}/home/s/a.h5"):
        FeatureStore.open("~/s/a.h5")


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("extract", "the same command continues where it stopped"),
        ("bench", "the same command continues where it stopped"),
        ("train", "the same command with --resume continues from its last checkpoint"),
        ("auto", "a first answer stays; the same command uses the features that are encoded"),
        ("fit", "the same command starts over"),
    ],
)
def test_ctrl_c_says_what_the_same_command_will_do(
    command: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", typer.Typer())
    cli.app.command(command)(lambda: interrupted())
    cli.app.command("another")(lambda: None)
    assert main([command]) == 130
    assert capsys.readouterr().err == f"fewshot: interrupted; {advice}\n"


def test_an_exit_code_of_a_library_is_kept_and_so_is_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leaves() -> None:
        raise SystemExit(3)

    monkeypatch.setattr(cli, "app", typer.Typer())
    cli.app.command()(leaves)
    stdout = sys.stdout
    with pytest.raises(SystemExit) as ended:
        main(["--"])
    assert ended.value.code == 3
    assert sys.stdout is stdout


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import cli; raise SystemExit(cli.main(['datasets']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        ran.stdout.close()
        assert ran.stderr.read() == b""
    assert ran.returncode == 0


def test_threads_sleep_while_they_wait_unless_told_otherwise() -> None:
    def policy(**given: str) -> str:
        clean = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        code = "import os, cli; print(os.environ['OMP_WAIT_POLICY'])"
        command = [sys.executable, "-c", code]
        ran = subprocess.run(
            command, cwd=ROOT, env=clean | given, capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()

    assert policy() == "PASSIVE"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson"])
def test_a_table_is_known_by_its_suffix(
    suffix: str, draw_photos: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_photos()
    rows = [(f"photos/{p.parent.name}/{p.name}", p.parent.name) for p in photos.glob("*/*.jpg")]
    if "json" in suffix:
        lines = [json.dumps({"path": path, "label": label}) for path, label in rows]
    else:
        comma = "," if suffix == "csv" else "\t"
        lines = [comma.join(row) for row in [("path", "label"), *rows]]
    Path(f"table.{suffix}").write_text("\n".join(lines) + "\n")
    assert main(["extract", "--dataset", f"table.{suffix}", "--dry-run"]) == 0
    assert "would encode 18 images" in capsys.readouterr().err


def test_no_arguments_are_a_question_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out.splitlines()
    assert "No such command 'fti'" in refusal(capsys, "fti")


def test_help_tells_defaults_that_depend_on_the_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["extract", "--help"]) == 0
    assert "[default: $FEWSHOT_DATA or ./data]" in " ".join(capsys.readouterr().out.split())


def test_inspect_and_verify_tell_a_whole_store_from_a_damaged_one(
    draw_photos: Callable[..., Path], random_vit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = extracted(draw_photos(), random_vit)
    capsys.readouterr()
    assert main(["inspect", str(store)]) == 0
    assert "photos, 3 classes" in capsys.readouterr().out
    assert main(["verify", str(store)]) == 0
    assert capsys.readouterr().out == f"{store}: whole and unchanged\n"
    with h5py.File(store) as file:
        at = file["test/features"].id.get_offset()
    content = bytearray(store.read_bytes())
    content[at] ^= 1
    store.write_bytes(content)
    assert "test/features: its bytes are not the ones" in refusal(capsys, "verify", str(store))


def test_datasets_lists_what_is_on_disk_and_extracted(
    draw_photos: Callable[..., Path], random_vit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extracted(draw_photos(), random_vit)
    capsys.readouterr()
    assert main(["datasets"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("dtd ") and "not on disk" in row for row in rows)
    assert any(row.startswith("digits ") and "bundled" in row for row in rows)
    assert any(row.startswith("photos ") and "local-dir" in row for row in rows)
    assert main(["datasets", "describable_textures"]) == 0
    assert "split_zhou_DescribableTextures.json" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_store_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.h5").write_text("hello")
    assert "not an HDF5 file" in refusal(capsys, command, "text.h5")
    with h5py.File("foreign.h5", "w") as file:
        file["x"] = [1]
    line = refusal(capsys, command, "foreign.h5")
    assert line.startswith("fewshot: foreign.h5 is an HDF5 file that fewshot did not write")
    assert "no store at none.h5" in refusal(capsys, command, "none.h5")


def test_an_error_writes_out_what_would_move_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(capsys, "extract", "--dataset", "./\x1b[2Jred\u202egpj")
    assert r"./\x1b[2Jred\u202egpj" in line
    assert line.isprintable()
