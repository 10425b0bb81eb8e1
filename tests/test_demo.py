import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve_folder
from cache.datasets.source import pooled
from cache.location import bank_path
from cache.store import FeatureStore
from cli import main
from fewshot.demo import SEEDS, SHOTS, run
from fewshot.results.log import Result
from fewshot.results.summaries import curves


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, digits_store: Path) -> Path:
    """A folder in which the demo has run, on features that were kept."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "features").mkdir()
    shutil.copy(bank_path(digits_store), bank_path(folder / "features"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("FEWSHOT_STORE", raising=False)
        assert main(["demo"]) == 0
    return folder


@pytest.fixture(scope="module")
def results(demo: Path) -> list[Result]:
    return run(FeatureStore.open(demo / "features" / "digits" / "tiny.h5"))


def test_the_demo_leaves_a_store_and_a_plot(demo: Path) -> None:
    assert (demo / "features" / "digits" / "tiny.h5").is_file()
    with Image.open(demo / "runs" / "demo.png") as image:
        colors = {c for _, c in image.convert("RGB").getcolors(1 << 24) or []}
    curve, level, neither = ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73))
    assert {curve, level} <= colors
    assert neither not in colors


def test_the_demo_fits_zero_shot_once_and_gda_for_all_shots_and_seeds(
    results: list[Result],
) -> None:
    fits = [(r.method, r.shots, r.seed) for r in results]
    assert fits == [("zero-shot", 0, 0), *(("gda", k, s) for k in SHOTS for s in SEEDS)]


def test_results_say_which_images_they_are_of(results: list[Result]) -> None:
    declared = load_manifest("digits").content["test"]
    assert {result.image_digest for result in results} == {declared[:16]}


def test_the_bundled_model_reads_digits_and_learns_from_shots(results: list[Result]) -> None:
    zero_shot, gda = curves(results).values()
    assert zero_shot[0][1] >= 0.68
    means = {shots: mean for shots, mean, _ in gda}
    assert means[16] >= 0.91
    assert means[16] >= means[1] + 0.02


def test_a_second_demo_encodes_nothing_and_prints_the_table_and_the_commands(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    assert main(["demo", "--plot", "again.png"]) == 0
    captured = capsys.readouterr()
    assert "images" not in captured.err
    lines = captured.out.splitlines()
    assert "$ fewshot extract --dataset digits --model tiny" in lines
    assert sum(line.startswith("$ fewshot fit ") for line in lines) == 2
    [row] = [line for line in lines if line.startswith("digits   tiny   gda")]
    assert row.count("±") == len(SHOTS)
    assert Path("again.png").is_file()


def test_the_demo_writes_photographs_to_try_ones_hand_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    assert main(["demo", "--photos", str(folder)]) == 0
    assert f"fewshot auto {folder} --model tiny" in capsys.readouterr().out
    source = pooled(resolve_folder(folder))
    assert len(source.classnames) == 10
    assert Counter(item.label for item in source.splits["train"]) == dict.fromkeys(range(10), 20)
    unlabeled = sorted((folder / "unlabeled").iterdir())
    assert len(unlabeled) == 100
    labeled = [path for path in folder.glob("*/*.png") if path not in unlabeled]
    pixels = {path.read_bytes() for path in unlabeled}
    assert pixels.isdisjoint(path.read_bytes() for path in labeled)
    assert main(["demo", "--photos", str(folder)]) == 2
    assert "not an empty folder; name a new one" in capsys.readouterr().err
