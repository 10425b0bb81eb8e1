import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.location import find_stores
from cache.store import FeatureStore
from cli import main
from fewshot.sampling import draw
from tests.forked import needs_fork, start
from tests.typed import extracted, refusal

pytestmark = pytest.mark.usefixtures("empty_folder")


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


BAD_EXTRACT: list[tuple[list[str], str]] = [
    ([], "say which dataset"),
    (["--dataset", "dtdd"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
    (["--dataset", "dtd"], "no data root at data"),
    (["--dataset", "dtd", "--data-root", "."], "split_zhou_DescribableTextures.json"),
    (["--dataset", "digits", "--model", "ViT-B-17/openai"], "unknown model 'ViT-B-17'"),
    (["--dataset", "digits", "--model", "nope", "--dry-run"], "unknown model 'nope'; known: "),
    (["--dataset", "digits", "--model", "RN50@w.pt+rn51/openai", "--dry-run"], "mean 'RN50'"),
    (["--dataset", "digits", "--model", "ViT-B/16", "--dry-run"], "say ViT-B/16/TAG, such as"),
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
    assert "photos: 3 classes, 18 images (folders, all for training)" in report
    assert "test" not in report
