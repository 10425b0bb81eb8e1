import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewshot
from cache.errors import UserError
from cache.store import FeatureStore
from cli import main
from fewshot import base_to_new, evaluate
from fewshot.commands.synthesize_command import COLLAPSED
from fewshot.doctor import folders
from fewshot.fitting import fit
from fewshot.synthesis import from_store, kept_files
from fewshot.synthesis.kept_features import read_kept
from fewshot.synthesizing import synthesize
from tests.forked import needs_fork, start, stop_once
from tests.small_stores import write_store

QUICK = "ship images=3 latent=4 hidden=8 epochs=2"
GAN = "tf-vaegan images=2 latent=2 hidden=4 epochs=1 critic_steps=1"
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(write_store(tmp_path, "six", names=NAMES, n_views=2))


@pytest.mark.parametrize("words", [QUICK, GAN])
def test_methods_of_either_norm_get_what_they_would_get_without(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    asked: dict[str, Any] = {"shots": 3, "seed": 2, "tune": "none", "synthesize": words}
    before = [base_to_new(store, name, **asked) for name in ("ridge", "linear-probe")]
    content = store.path.read_bytes()
    kept = synthesize(store, words, shots=3, seed=2)
    assert kept.new
    assert store.path.read_bytes() == content
    assert FeatureStore.open(store.path).fingerprint == store.fingerprint
    monkeypatch.setattr(from_store, "synthesize", None)  # no generator can be trained
    for name, plain in zip(("ridge", "linear-probe"), before, strict=True):
        again = base_to_new(store, name, **asked)
        assert (again.accuracies, again.measures) == (plain.accuracies, plain.measures)
        assert again.run == plain.run
    evaluate(store, "gda", shots=3, seed=2, setting="generalized", synthesize=words, tune="none")


def test_a_file_has_what_was_made(store: FeatureStore) -> None:
    kept = synthesize(store, QUICK, shots=2)
    fitted = fit(store, "ridge", shots=2, setting="base-to-new", synthesize=QUICK, tune="none")
    assert fitted.support is not None
    assert fitted.support.views is not None
    made, card = read_kept(kept.path)
    assert torch.equal(made.features[0], fitted.support.features[6:])
    assert torch.equal(made.features[1:], fitted.support.views[:, 6:])
    assert made.labels.tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert made.log == kept.made.log
    assert len(made.log) == 2
    assert (card.images, card.features, card.classes, card.shots) == (6, 9, 3, 2)


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"shots": 3}, {"generator": f"{QUICK} beta=0.5"}, {"prompt_set": "long"}],
)
def test_what_would_make_other_features_is_another_file(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    path = write_store(tmp_path, "six", names=NAMES, text=("templates", "long"))
    asked: dict[str, Any] = {"generator": QUICK, "shots": 2, "seed": 1}
    one, another = synthesize(path, **asked), synthesize(path, **{**asked, **other})
    assert one.path != another.path
    assert one.path.exists()
    assert another.new


def test_a_store_of_other_features_does_not_read_them(tmp_path: Path) -> None:
    kept = synthesize(write_store(tmp_path, "six", names=NAMES), QUICK, shots=2)
    assert not kept_files.is_stale(kept.path)
    other = write_store(tmp_path, "six", names=NAMES, seed=1)
    assert kept_files.is_stale(kept.path)
    assert synthesize(other, QUICK, shots=2).path != kept.path


def test_the_same_again_trains_nothing(store: FeatureStore) -> None:
    first, again = (synthesize(store, QUICK, shots=2) for _ in range(2))
    assert (first.new, again.new) == (True, False)
    assert first.card == again.card


def test_any_changed_byte_is_damage_in_one_line(store: FeatureStore) -> None:
    path = synthesize(store, QUICK, shots=2).path
    whole = path.read_bytes()
    assert fewshot.verify(path) == "whole and unchanged"
    assert QUICK in fewshot.inspect(path)
    for place in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for look in (fewshot.verify, lambda _: synthesize(store, QUICK, shots=2)):
            with pytest.raises(UserError, match="is damaged: its bytes are not those written"):
                look(path)
    [problem] = [f for f in folders.synthesized(path.parents[1]) if f.state == "problem"]
    assert str(path) in problem.found
    path.write_bytes(whole.replace(b'"format\\": 1', b'"format\\": 7', 1))
    with pytest.raises(UserError, match="of format 7, and this version reads up to 1"):
        fewshot.inspect(path)


def test_a_run_that_ends_within_leaves_nothing(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    before = sorted(store.path.parent.iterdir())
    monkeypatch.setattr("cache.files.atomic.flush", stop)
    with pytest.raises(KeyboardInterrupt):
        synthesize(store, QUICK, shots=2)
    assert sorted(store.path.parent.iterdir()) == before


@needs_fork
def test_a_killed_run_leaves_nothing_and_the_next_one_makes_all(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = store.path.parent
    before = sorted(folder.iterdir())
    with monkeypatch.context() as patch:  # it is killed when all bytes are in the temporary file
        patch.setattr("cache.files.atomic.flush", lambda *_: time.sleep(60))
        process = start(lambda: synthesize(store, QUICK, shots=2), err=tmp_path / "err")
    stop_once(process, lambda: any(folder.glob("*.tmp")), signal.SIGKILL)
    assert not kept_files.find_kept(folder.parent)
    kept = synthesize(store, QUICK, shots=2)
    assert kept.new
    assert sorted(folder.iterdir()) == sorted([*before, kept.path])


def test_the_command_shows_every_epoch_and_says_where_it_is_kept(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(store.path.parents[1])
    command = ["synthesize", "--store", root, "--generator", f"{QUICK} beta=9", "--shots", "2"]
    assert main([*command, "--per-class", "5", "--seed", "1,2"]) == 0
    out, err = capsys.readouterr()
    assert [row.split()[0] for row in out.splitlines()] == ["epoch", "1", "2"] * 2
    assert out.splitlines()[0].split() == ["epoch", "reconstruction", "kl"]
    [first, second] = kept_files.find_kept(Path(root))
    assert f"kept: {first}" in err
    assert f"kept: {second}" in err
    assert "15 features of 3 classes (5 each)" in err
    collapsed = [read_kept(path)[0].log[-1]["kl"] < COLLAPSED for path in (first, second)]
    assert err.count("the posterior collapsed") == sum(collapsed)
    [reader] = [line for line in err.splitlines() if "--seed 2" in line]
    words = reader.removeprefix("read by: fewshot ").replace("METHOD", "ridge")
    assert "'ship beta=9.0 images=5" in words


def test_what_is_kept_is_listed_and_pruned_with_its_store(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    root = store.path.parents[1]
    path = synthesize(store, QUICK, shots=2).path
    assert main(["cache", "--store", str(root)]) == 0
    assert "six      toy" in capsys.readouterr().out.splitlines()[1]
    assert [f.state for f in folders.synthesized(root)] == ["ok"]
    assert main(["cache", "--store", str(root), "--prune"]) == 0
    assert path.exists()
    store.path.unlink()
    warning, ok = folders.synthesized(root)
    assert (warning.state, ok.state) == ("warning", "ok")
    assert main(["cache", "--store", str(root), "--prune"]) == 0
    assert not path.exists()
    assert main(["cache", "--store", str(root)]) == 2


BAD = [
    (["--generator", "shap"], "unknown generator 'shap'; did you mean 'ship'"),
    (["--generator", "ship lr=0"], "lr must be more than 0"),
    (["--shots", "0"], "a generator learns from labeled images; got shots 0"),
    (["--shots", "99"], "use at most 20 shots"),
    (["--model", "a+toy"], r"a\+toy is a pair"),
    (["--dataset", "none"], "no such store"),
    (["--prompts", "none"], "unknown prompt set 'none'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_one_line_and_keeps_nothing(
    store: FeatureStore,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main(["synthesize", "--store", str(store.path.parents[1]), *options]) == 2
    [*_, line] = capsys.readouterr().err.splitlines()
    assert line.startswith("fewshot: ")
    assert not kept_files.find_kept(store.path.parents[1])
    assert re.search(message, line), line


def test_no_text_and_too_few_classes_are_one_line(tmp_path: Path) -> None:
    bare = write_store(tmp_path, "bare", text=())
    with pytest.raises(UserError, match="has no text, and ship makes features of class texts"):
        synthesize(bare)
    few = write_store(tmp_path, "few", names=NAMES[:3])
    with pytest.raises(UserError, match="four classes or more"):
        synthesize(few)


def test_what_is_written_is_of_unit_norm(store: FeatureStore) -> None:
    made = read_kept(synthesize(store, QUICK, shots=2).path)[0]
    np.testing.assert_allclose(made.features.norm(dim=2), 1, atol=1e-6)
