import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from cache.errors import UserError
from cache.models.loading import load
from cache.store import FeatureStore
from cli import main
from tests.auto_photos import digit
from tests.forked import needs_fork
from tests.nasty_photos import User, contents, two_classes
from tests.small_stores import write_store
from tests.stopped_runs import Job, run
from tests.toy_adapters import fitted_adapter

ENCODE = "cache.models.encoder:Encoder.encode_images"
KEEP = "cache.extraction.bank:Bank.put"
PROMPTS = "cache.models.encoder:Encoder.encode_text_pooled"
DECODE = "cache.images.decode:opened"
ASSEMBLE = "cache.extraction.store_writer:StoreWriter.write"
FLUSH = "cache.files.atomic:flush"
JUDGE = "fewshot.automatic.judging:cross_validate"
PAGE = "fewshot.automatic.writing:page"
EXTRACT = ("extract", "--dataset", "../../photos", "--all-train", "--model", "tiny", "--store", "s")
AUTO = ("auto", "../../photos", "--model", "tiny", "--methods", "zero-shot,nearest-mean",
        "--store", "s", "--out", "out")  # fmt: skip
FIT = ("fit", "gda", "--dataset", "toys", "--shots", "4", "--store", "../../stores",
       "--save", "out/a.safetensors", "--results", "out/results.jsonl")  # fmt: skip
IMPORT = ("import", "../../toys.npz", "--dataset", "toys", "--model", "tiny", "--store", "s")
EXPORT = ("export", "../../a.safetensors", "--to", "open_clip", "--out", "out/exported")
KILL, INT = signal.SIGKILL, signal.SIGINT
STOPPED: Mapping[int, int] = {KILL: -KILL, INT: 130}  # exit codes
STOPS: Mapping[str, Mapping[str, tuple[tuple[str, ...], str, int, str, int]]] = {
    "extract": {
        "undisturbed": (EXTRACT, "", 1, "", KILL),
        "killed while it keeps a shard": (EXTRACT, KEEP, 2, "image", KILL),
        "killed while it assembles": (EXTRACT, ASSEMBLE, 2, "", KILL),
        "killed before it renames": (EXTRACT, FLUSH, 1, "tiny.h5", KILL),
        "Ctrl-C while it decodes": (EXTRACT, DECODE, 6, "", INT),
        "Ctrl-C at the prompts": (EXTRACT, PROMPTS, 1, "", INT),
    },
    "auto": {
        "undisturbed": (AUTO, "", 1, "", KILL),
        "killed while it encodes": (AUTO, ENCODE, 2, "", KILL),
        "killed while it judges": (AUTO, JUDGE, 2, "", KILL),
        "killed while it writes": (AUTO, PAGE, 1, "", KILL),
        "Ctrl-C while it judges": (AUTO, JUDGE, 2, "", INT),
        "Ctrl-C while it writes": (AUTO, FLUSH, 1, "adapter", INT),
    },
    "fit": {
        "undisturbed": (FIT, "", 1, "", KILL),
        "killed before it renames": (FIT, FLUSH, 1, "a.safetensors", KILL),
        "killed before it says so": (FIT, "fewshot.results.log:append", 1, "", KILL),
    },
    "import": {
        "undisturbed": (IMPORT, "", 1, "", KILL),
        "killed while it writes": (IMPORT, ASSEMBLE, 2, "", KILL),
        "killed before it renames": (IMPORT, FLUSH, 1, "tiny.h5", KILL),
    },
    "export": {
        "undisturbed": (EXPORT, "", 1, "", KILL),
        "killed while it writes": (EXPORT, "cache.files.atomic_folder:flush", 2, "", KILL),
        "killed before it renames": (EXPORT, "cache.files.atomic_folder:_move_onto", 1, "", KILL),
    },
}
# Its folder, and its seconds.
TELL_OF_THIS_RUN = ("report.html", "report.json", "commands.sh", "results.jsonl", ".bank.sqlite")


def files(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of what a run is to leave behind; locks stay and are empty."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.parent != folder and path.suffix != ".lock"
    }


def write_arrays(path: Path) -> None:
    """Features of three classes, for `import`."""
    rng, ids = np.random.default_rng(0), np.arange(12) % 3
    arrays: dict[str, Any] = {"text_features": rng.normal(size=(3, 8))}
    for split in ("train", "test"):
        arrays |= {f"{split}_features": rng.normal(size=(12, 8)), f"{split}_labels": ids}
    np.savez(path, **arrays)


@needs_fork
def test_a_run_stopped_at_any_moment_and_typed_again_leaves_what_an_undisturbed_one_does(
    tmp_path: Path,
) -> None:
    two_classes(tmp_path / "photos", 6)
    write_store(tmp_path / "stores", "toys")
    write_arrays(tmp_path / "toys.npz")
    fitted_adapter(load("tiny", device="cpu"), "gda").save(tmp_path / "a.safetensors")
    photos = contents(tmp_path / "photos")
    jobs = {}
    for command, stops in STOPS.items():
        for what, (arguments, at, call, about, how) in stops.items():
            home = tmp_path / command / what
            home.mkdir(parents=True)
            jobs[home] = Job(str(home), arguments, at, call, about, how)
    for (home, job), (codes, _) in zip(jobs.items(), map(run, jobs.values()), strict=True):
        said = (home / "first.txt").read_text()
        assert codes == ([STOPPED[job.how], 0] if job.at else [0]), (home, said)
        assert "Traceback" not in said
        if codes[0] == 130:
            last = said.splitlines()[-1]
            assert last.startswith("fewshot: interrupted; ")
            assert "the same command " in last
        left, wanted = files(home), files(home.with_name("undisturbed"))
        assert set(left) == set(wanted), home
        for name in wanted:
            if Path(name).name not in TELL_OF_THIS_RUN:
                assert left[name] == wanted[name], (home, name)
    assert contents(tmp_path / "photos") == photos


def test_a_second_run_at_the_same_time_is_turned_away_in_a_line(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    for root in ("extracted", "features"):
        (tmp_path / root / "photos-all").mkdir(parents=True)
    said = r"another process is writing .*tiny\.h5; wait for it, or stop it and run this again"
    with FileLock(tmp_path / "extracted" / "photos-all" / ".tiny.lock"):
        refusal = user.extracts(photos).refusal
    assert refusal.startswith("fewshot: another process is writing ")
    with (
        FileLock(tmp_path / "features" / "photos-all" / ".tiny.lock"),
        pytest.raises(UserError, match=said),
    ):
        user.learns(photos)
    assert not list(tmp_path.rglob("*.h5"))
    assert user.learns(photos).page_path.is_file()


def test_a_folder_is_the_same_however_it_is_named(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = two_classes(tmp_path / "photos")
    (tmp_path / "disk").symlink_to(tmp_path)
    stores = []
    for i, (here, name) in enumerate(
        [
            (tmp_path, str(photos)),
            (tmp_path, "photos"),
            (tmp_path, "photos/"),
            (tmp_path, "./photos/../photos/."),
            (tmp_path, "disk/photos"),
            (photos, "."),
            (photos / "one", ".."),
        ]
    ):
        monkeypatch.chdir(here)
        mine = User(tmp_path / f"home {i}", user._capsys)
        ran = mine.extracts(name)
        assert ran.code == 0, ran.said
        stores.append(Path(ran.out.strip()))
    assert {path.parent.name for path in stores} == {"photos-all"}
    assert len({path.read_bytes() for path in stores}) == 1
    learned = user.learns(Path("../../disk/photos/"))
    assert learned.store.dataset == "photos-all"


def test_a_folder_that_is_not_there_is_one_line(user: User) -> None:
    expected = "fewshot: no folder or table at ./photso/; give one that there is"
    assert user.extracts("./photso/").refusal == expected


def test_folders_in_other_scripts_have_stores_of_their_own(user: User, tmp_path: Path) -> None:
    for name in ("фото", "写真", "фото 2024", "写真 2024", "Été 2024"):
        two_classes(tmp_path / name)
        assert user.extracts(tmp_path / name).code == 0
    stores = sorted(path.parent.name for path in (tmp_path / "extracted").rglob("*.h5"))
    kinds = [re.sub("-[0-9a-f]{8}-all$", "-*", name) for name in stores]
    assert kinds == ["2024-*", "2024-*", "Ete-2024-all", "folder-*", "folder-*"]
    assert len(set(stores)) == 5


def test_auto_notices_whatever_became_of_the_photos(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    first = user.learns(photos)
    before = dict(zip(first.store.paths("train"), first.store.features("train"), strict=True))

    digit("one", 30).save(photos / "one" / "new.png")
    assert "one/new.png" in user.learns(photos).paths
    (photos / "one" / "new.png").rename(photos / "zero" / "new.png")
    moved = user.learns(photos)
    assert "zero/new.png" in moved.paths
    assert moved.store.labels("train").tolist() == [0, 0, 0, 1, 1, 1, 1]
    (photos / "zero" / "new.png").unlink()
    assert user.learns(photos).paths == first.paths
    (photos / "one").rename(photos / "uno")
    assert user.learns(photos).store.classnames == ("uno", "zero")
    (photos / "uno").rename(photos / "one")
    digit("one", 31).resize((64, 64)).save(photos / "one" / "000.png")
    again = user.learns(photos)
    after = dict(zip(again.store.paths("train"), again.store.features("train"), strict=True))
    changed = {path for path in before if abs(before[path] - after[path]).max() > 1e-3}
    assert changed == {"one/000.png"}

    photos.rename(tmp_path / "renamed")
    with pytest.raises(UserError, match="holds the result for the photos in"):
        user.learns(tmp_path / "renamed")
    shutil.rmtree(tmp_path / "out")
    renamed = user.learns(tmp_path / "renamed")
    assert renamed.store.dataset == "renamed-all"
    assert FeatureStore.open(again.store.path).paths("train") == renamed.paths


def test_a_place_that_cannot_be_written_is_one_line(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    (tmp_path / "extracted").write_text("a file")
    refusal = user.extracts(photos).refusal
    assert re.search("fewshot: cannot write .*extracted is a file; give --store another", refusal)
    assert (tmp_path / "extracted").read_text() == "a file"


def test_auto_writes_nothing_among_the_photos_though_they_are_where_one_works(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = two_classes(tmp_path / "photos")
    monkeypatch.chdir(photos)
    for home in (Path(), Path("one"), tmp_path / "one" / ".." / "photos"):
        with pytest.raises(UserError, match=r"out lies in the folder of photos.* --out another"):
            User(home, user._capsys).learns(".")
    assert sorted(path.name for path in photos.iterdir()) == ["one", "zero"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is closed to root")
def test_photos_that_cannot_be_written_will_do_and_a_closed_store_is_one_line(
    user: User, tmp_path: Path
) -> None:
    photos = two_classes(tmp_path / "photos")
    (tmp_path / "extracted").mkdir(mode=0o500)
    for folder in (photos / "one", photos / "zero", photos):
        folder.chmod(0o500)
    try:
        assert "Permission denied at " in user.extracts(photos).refusal
        assert user.learns(photos).page_path.is_file()
    finally:
        for folder in (photos, photos / "one", photos / "zero", tmp_path / "extracted"):
            folder.chmod(0o700)


def test_extract_writes_nothing_among_the_photos_though_they_are_where_one_works(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = two_classes(tmp_path / "photos")
    monkeypatch.chdir(photos)
    refusal = user.types("extract", "--dataset", ".", "--model", "tiny").refusal
    assert refusal.startswith("fewshot: features lies in the folder of photos")
    assert sorted(path.name for path in photos.iterdir()) == ["one", "zero"]


def test_a_file_where_a_folder_should_be_is_one_line(user: User, tmp_path: Path) -> None:
    photos = two_classes(tmp_path / "photos")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out is a file; give --out another place"):
        user.learns(photos)
    assert not (tmp_path / "features").exists()  # it is told before anything is encoded
    assert user.extracts(photos).code == 0
    save = tmp_path / "out" / "a.safetensors"
    ran = user.types(
        "fit", "nearest-mean", "--dataset", "photos-all", "--shots", "all", "--save", save,
        "--store", tmp_path / "extracted",
    )  # fmt: skip
    assert ran.code == 2
    assert ran.said[-1].startswith(f"fewshot: cannot write {save}: ")


def test_a_terminal_without_the_letters_of_a_path_gets_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_classes(tmp_path / "photos", 1)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    photos = ["--dataset", str(tmp_path / "photos"), "--all-train", "--model", "tiny"]
    assert main(["extract", *photos, "--store", str(tmp_path / "\u00e9")]) == 0
    terminal.seek(0)
    assert terminal.read().endswith("/\\xe9/photos-all/tiny.h5\n")
