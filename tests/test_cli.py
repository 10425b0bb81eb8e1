import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer

import cli
from cache.location import find_stores
from cache.store import FeatureStore
from cli import main
from fewshot.sampling import draw
from tests.forked import needs_fork, start

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder of its own, with no environment to lean on."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSHOT_DATA", "FEWSHOT_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a command that cannot work prints, checked to be one and to exit with 2."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert code == 2
    assert last.startswith("fewshot: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return last


def extracted(photos: Path, model: Path, *more: str) -> Path:
    code = main(["extract", "--dataset", str(photos), "--model", f"local-dir:{model}", *more])
    assert code == 0
    return find_stores(Path("features"))[0]


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


def test_extract_prints_the_store_and_leaves_reports_to_stderr(
    draw_photos: Callable[..., Path], random_vit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = extracted(draw_photos(), random_vit)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(store)]
    assert "photos: 3 classes, 18 images" in captured.err
    assert FeatureStore.open(store).classnames == ("blue", "green", "red")
    extracted(store.parents[2] / "photos", random_vit)
    assert capsys.readouterr().out == f"{store} (already there)\n"


def test_a_dry_run_writes_nothing(
    draw_photos: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", "--dataset", str(draw_photos()), "--dry-run"]) == 0
    assert "would encode 18 images and 3 prompts with ViT-B-16/openai" in capsys.readouterr().err
    assert not Path("features").exists()


def test_templates_prompts_and_views_reach_the_store(
    draw_photos: Callable[..., Path], random_vit: Path
) -> None:
    Path("mine.json").write_text(json.dumps({c: [f"{c} thing"] for c in ("red", "green", "blue")}))
    options = ["--template", "a {}", "--template", "the {}", "--prompts", "mine.json"]
    store = FeatureStore.open(
        extracted(draw_photos(), random_vit, *options, "--views", "2", "--resize", "squash")
    )
    assert set(store.text_sets) == {"templates", "mine"}
    assert store.split("train").n_views == 2
    assert store.identity["preprocessing"]["resize_mode"] == "squash"


def test_support_only_encodes_what_the_few_shot_sets_need(
    draw_photos: Callable[..., Path], random_vit: Path
) -> None:
    options = ["--support-only", "1,2", "--seeds", "1,2"]
    store = FeatureStore.open(extracted(draw_photos(20), random_vit, *options))
    labels = store.labels("train")
    for shots in (1, 2):
        for seed in (1, 2):
            rows = draw(labels, store.classnames, shots=shots, seed=seed).train
            assert store.features("train", rows).shape == (3 * shots, 16)
    assert len(store.split("train").encoded) < len(labels)


def test_shards_then_a_plain_run(
    draw_photos: Callable[..., Path], random_vit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_photos()
    for i in (1, 2):
        arguments = ["--dataset", str(photos), "--model", f"local-dir:{random_vit}"]
        assert main(["extract", *arguments, "--shard", f"{i}/2"]) == 0
        assert not find_stores(Path("features"))
    assert "assembles" in capsys.readouterr().err
    assert extracted(photos, random_vit).exists()


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


BAD_EXTRACT: list[tuple[list[str], str]] = [
    ([], "say which dataset"),
    (["--dataset", "dtdd"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
    (["--dataset", "dtd"], "no data root at data"),
    (["--dataset", "dtd", "--data-root", "."], "split_zhou_DescribableTextures.json"),
    (["--dataset", "digits", "--model", "ViT-B-17/openai"], "unknown model 'ViT-B-17'"),
    (["--dataset", "digits", "--template", "a photo"], "one {} where the class name goes"),
    (["--dataset", "digits", "--prompts", "none.json"], "cannot read prompts from none.json"),
    (["--dataset", "digits", "--template-set", "x"], "unknown template set of digits 'x'"),
    (["--dataset", "digits", "--support-only", "x"], "--support-only must be integers"),
    (["--dataset", "digits", "--support-only", "1000"], "1,000 train images of every class"),
    (["--dataset", "digits", "--model", "tiny", "--shard", "3/2"], "--shard must be I/N"),
    (["--dataset", "digits", "--views", "-1"], "'--views'"),
    (["--dataset", "digits", "--crop-scale", "0.9", "0.1"], "--crop-scale"),
    (["--nonsense"], "--nonsense"),
    (["--manifest", "none.toml"], "none.toml"),
    (["--dataset", "table.csv"], "table.csv"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_EXTRACT)
def test_extract_refuses_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "extract", *arguments)
    assert not find_stores(Path("features"))


def test_a_folder_with_one_class_is_refused(
    draw_photos: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_photos(4, ("only",))
    assert "two classes" in refusal(capsys, "extract", "--dataset", str(photos))


def test_an_empty_class_is_refused_and_named(
    draw_photos: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_photos()
    (photos / "violet").mkdir()
    assert "1 class (violet) without" in refusal(capsys, "extract", "--dataset", str(photos))


def test_corrupt_images_are_refused_or_left_out_and_listed(
    draw_photos: Callable[..., Path], random_vit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_photos()
    (photos / "red" / "000.jpg").write_bytes(b"")
    arguments = ("--dataset", str(photos), "--model", f"local-dir:{random_vit}")
    line = refusal(capsys, "extract", *arguments)
    assert "1 image cannot be read" in line
    assert "red/000.jpg" in line
    path = extracted(photos, random_vit, "--skip-unreadable")
    assert main(["verify", str(path)]) == 0
    store = FeatureStore.open(path)
    assert store.identity["dataset"]["sizes"] == {"train": 9, "val": 3, "test": 6}
    assert len(store.skipped) == 1
    assert store.skipped[0].path.endswith("red/000.jpg")


@needs_fork
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(
    draw_photos: Callable[..., Path], random_vit: Path
) -> None:
    photos = draw_photos()
    arguments = ["extract", "--dataset", str(photos), "--model", f"local-dir:{random_vit}"]

    def run_within_limits() -> int:
        import resource  # Windows has none

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        first_bytes = 20_000  # of what is kept, and no more
        resource.setrlimit(resource.RLIMIT_FSIZE, (first_bytes, resource.RLIM_INFINITY))
        return main(arguments)

    ran = start(run_within_limits, err=Path("said.txt"))
    ran.join()
    said = Path("said.txt").read_text()
    assert ran.exitcode == 2, said
    assert said.splitlines()[-1].startswith("fewshot: ")
    assert "cannot use features/.bank.sqlite" in said.splitlines()[-1]
    assert "room on the disk" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not list(Path("features").rglob("*.tmp"))
    assert not find_stores(Path("features"))
    assert extracted(photos, random_vit).exists()


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_store_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.h5").write_text("hello")
    assert "not an HDF5 file" in refusal(capsys, command, "text.h5")
    with h5py.File("foreign.h5", "w") as file:
        file["x"] = [1]
    line = refusal(capsys, command, "foreign.h5")
    assert line.startswith("fewshot: foreign.h5 is an HDF5 file that fewshot did not write")
    assert "no store at none.h5" in refusal(capsys, command, "none.h5")


def features_file(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {"text_features": rng.normal(size=(3, 8))}
    for split, n in (("train", 30), ("val", 12), ("test", 30)):
        labels = np.arange(n) % 3
        arrays[f"{split}_features"] = rng.normal(size=(n, 8)) + 3 * np.eye(8)[labels]
        arrays[f"{split}_labels"] = labels
    arrays |= changes
    given: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items() if v is not None}
    np.savez(path, **given)
    return path


def test_import_makes_a_store_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    features_file(Path("f.npz"))
    assert main(["import", "f.npz", "--dataset", "mine", "--model", "ViT-B-16,openai"]) == 0
    captured = capsys.readouterr()
    assert "train_features = train_features" in captured.err
    assert "not used" not in captured.err
    store = FeatureStore.open(Path(captured.out.strip()))
    assert store.imported
    assert (store.dataset, store.model) == ("mine", "ViT-B-16/openai")


def test_import_names_the_arrays_it_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    features_file(Path("f.npz"), text_features=None, text_average=np.ones((3, 8)))
    arguments = ["import", "f.npz", "--dataset", "mine", "--model", "x", "--logit-scale", "30"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "not used: text_average; --array NAME=KEY" in captured.err
    assert FeatureStore.open(Path(captured.out.strip())).logit_scale == 30.0


NAN = np.full((30, 8), np.nan)
ONE_CLASS: dict[str, object] = {"text_features": np.ones((1, 8)), "val_labels": np.zeros(12, int)}
BAD_IMPORT: list[tuple[dict[str, object], str]] = [
    ({"train_features": NAN}, "train_features are not"),
    ({"train_labels": np.arange(30) - 1}, "label"),
    ({"text_features": np.ones((3, 9))}, "9"),
    ({f"{s}_labels": np.zeros(30, int) for s in ("train", "test")} | ONE_CLASS, "only one class"),
    ({"train_features": np.array([{}] * 30, dtype=object)}, "pickle"),
    ({"train_features": None}, "train_features"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_IMPORT)
def test_import_refuses_in_one_line(
    changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features_file(Path("f.npz"), **changes)
    line = refusal(capsys, "import", "f.npz", "--dataset", "mine", "--model", "x")
    assert message in line
    assert not find_stores(Path("features"))


def test_the_model_may_stand_in_the_environment(
    draw_photos: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEWSHOT_MODEL", "tiny")
    folder = str(draw_photos())
    assert main(["extract", "--dataset", folder, "--dry-run"]) == 0
    assert "prompts with tiny into" in capsys.readouterr().err
    assert main(["extract", "--dataset", folder, "--model", "RN50/openai", "--dry-run"]) == 0
    assert "prompts with RN50/openai into" in capsys.readouterr().err


def test_all_images_may_be_kept_for_training(
    draw_photos: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", "--dataset", str(draw_photos()), "--all-train", "--dry-run"]) == 0
    report = capsys.readouterr().err
    assert "photos-all: 3 classes, 18 images (folders, all for training)" in report
    assert "test" not in report


def test_an_error_writes_out_what_would_move_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(capsys, "extract", "--dataset", "./\x1b[2Jred\u202egpj")
    assert r"./\x1b[2Jred\u202egpj" in line
    assert line.isprintable()
