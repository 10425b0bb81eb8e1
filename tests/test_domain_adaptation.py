import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.datasets.layouts import digits
from cache.errors import UserError
from cache.extraction.store_writer import create
from cache.models.loading import load
from cache.store import FeatureStore
from cli import main
from fewshot import adapt, fit
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.domain_adaptation import relation
from fewshot.methods.two_stage import TwoStage
from fewshot.open_set import certainty
from fewshot.results.log import Result
from fewshot.results.prediction_files import read_predictions
from fewshot.results.significance import compare
from fewshot.results.summaries import accuracy_table
from tests.small_stores import write_store
from tiny_clip.draw import draw_digits
from tiny_clip.train import standardize


def stores(root: Path, source: Sequence[str], target: Sequence[str]) -> tuple[Path, Path]:
    return write_store(root, "source", names=list(source)), write_store(
        root, "target", names=list(target)
    )


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("abc", "cab", "closed"), ("abc", "ab", "partial"),
        ("ab", "abc", "open"), ("abc", "bcd", "universal"),
    ],
)  # fmt: skip
def test_the_relation_follows_from_the_names(
    tmp_path: Path, source: str, target: str, expected: str
) -> None:
    paths = stores(tmp_path, source, target)
    assert relation(*map(FeatureStore.open, paths)) == expected


@pytest.mark.parametrize("method", ["gda", "two-stage"])
@pytest.mark.parametrize("threshold", [0.2, 0.7])
def test_the_h_score_is_that_of_its_definition(
    tmp_path: Path, method: str, threshold: float
) -> None:
    source, target = map(FeatureStore.open, stores(tmp_path, "abcd", "xdbay"))
    result = adapt(source, target, method, shots=5, threshold=threshold, save=tmp_path)
    fitted = fit(source, method, shots=5, setting="domain-adaptation")
    classifier: Any = fitted.classifier
    if method == "two-stage":
        images = torch.from_numpy(target.split("train").features())
        classifier = fitted.method.adapt(classifier, images, unknown=True)  # type: ignore[attr-defined]
    test = target.split("test")
    logits = classifier.logits(torch.from_numpy(test.features()))
    rejected = certainty(logits.double()) < threshold
    named = ["abcd"[k] for k in logits.argmax(dim=1)]
    truth = ["xdbay"[k] for k in test.labels]
    by_class: dict[str, list[bool]] = {}
    for name, true, no in zip(named, truth, rejected.tolist(), strict=True):
        by_class.setdefault("?" if true in "xy" else true, []).append(
            no if true in "xy" else name == true and not no
        )
    unknown = np.mean(by_class.pop("?"))
    known = np.mean([np.mean(right) for right in by_class.values()])
    assert result.accuracies == {
        "known": pytest.approx(known), "unknown": pytest.approx(unknown),
    }  # fmt: skip
    assert result.accuracy == pytest.approx(2 * known * unknown / max(known + unknown, 1e-9))
    assert (result.threshold, result.dataset, result.source) == (threshold, "target", "source")
    assert result.n_support == 20 + (100 if method == "two-stage" else 0)
    assert Result.from_json(result.to_json()) == result
    assert read_predictions(Path(str(result.predictions))).classnames == (*"abcd", "unknown")
    assert "domain-adaptation source known from" in accuracy_table([result])


def test_without_classes_of_its_own_the_target_is_tested_as_usual(tmp_path: Path) -> None:
    source, target = stores(tmp_path, "abc", "cab")
    result = adapt(source, target, "zero-shot")
    assert result.accuracies == {}
    everything = adapt(source, target, "two-stage", shots="all")
    assert (everything.n_support, everything.setting) == (120, "domain-adaptation")
    assert adapt(source, target, "ueo").n_support == 60


def test_labels_of_the_target_have_no_say(tmp_path: Path) -> None:
    source, target = stores(tmp_path, "abc", "abc")
    first = adapt(source, target, "two-stage", shots=4, save=tmp_path / "one")
    write_store(tmp_path, "other", names=list("bca"), seed=0)
    again = adapt(source, tmp_path / "other" / "toy.h5", "two-stage", shots=4, save=tmp_path)
    one, other = (read_predictions(Path(str(r.predictions))) for r in (first, again))
    assert (one.predicted == other.predicted).all()
    assert (one.labels != other.labels).any()


def test_drawn_digits_help_to_read_handwritten_ones(tmp_path: Path, digits_store: Path) -> None:
    encoder = load("tiny")
    pictures, labels = draw_digits(400, torch.Generator().manual_seed(77))
    prompts = [f"the digit {name}" for name in digits.CLASSNAMES]
    drawn, written = tmp_path / "drawn" / "tiny.h5", digits_store / "digits" / "tiny.h5"
    identity = {"dataset": {"name": "drawn"}, "model": encoder.identity}
    named = [f"train/{row}" for row in range(400)]
    with create(drawn, identity=identity, classnames=digits.CLASSNAMES, versions={}) as writer:
        writer.split("train", labels=labels.numpy(), paths=named, dim=encoder.dim, n_views=0)
        with torch.inference_mode():
            parts = torch.split(standardize(pictures), 100)
            features = torch.cat([encoder.encode_images(part) for part in parts])
        writer.write("train", 0, features.numpy())
        writer.text("templates", encoder.encode_text(prompts).numpy(), range(10), prompts)
    alone, adapted = (
        adapt(
            drawn, written, "two-stage", shots="all", save=tmp_path / str(epochs),
            fixed={"adapt_epochs": epochs},
        )
        for epochs in (0, TwoStage.adapt_epochs)
    )  # fmt: skip
    two = [read_predictions(Path(str(r.predictions))) for r in (adapted, alone)]
    comparison = compare([(two[0], two[1])])
    assert comparison.interval[0] > 0
    assert adapted.accuracy > alone.accuracy + 0.02


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("abc", "xyz", {}, "no class of the same name in common"),
    ("abc", "abca", {}, "a is the name of two classes"),
    ("abc", "abc", {"threshold": 1.5}, "threshold must be from 0 to 1"),
    ("abc", "abc", {"known": 2}, "belong to the setting open-set alone"),
]


@pytest.mark.parametrize(("source", "target", "asked", "message"), WRONG)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, source: str, target: str, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        adapt(*stores(tmp_path, source, target), "gda", **{"shots": 2, **asked})


def test_stores_of_two_models_or_without_images_are_refused(tmp_path: Path) -> None:
    source, _ = stores(tmp_path, "abc", "abcd")
    with pytest.raises(UserError, match="extract both with one model"):
        adapt(source, write_store(tmp_path, "other", "model", names=list("abc")), "gda", shots=2)
    bare = write_store(tmp_path, "bare", names=list("abcd"), splits=("test",))
    with pytest.raises(UserError, match="no train split"):
        adapt(source, bare, "two-stage", shots=2)
    assert adapt(source, bare, "gda", shots=2).accuracies


def test_the_command_adapts_and_runs_again_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stores(tmp_path / "features", "abc", "abd")
    monkeypatch.chdir(tmp_path)
    asked = ["--dataset", "target", "--source", "source", "--shots", "4", "--json"]
    assert main(["fit", "two-stage", *asked, "--threshold", "0.4"]) == 0
    first = Result.from_json(capsys.readouterr().out)
    again = first.command(Path("features"), Path("runs")).split()
    assert main([*again[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracies"] == first.accuracies
    assert main(["fit", "gda", "--threshold", "0.4"]) == 2
    assert main(["fit", "gda", "--source", "source", "--known", "2"]) == 2


def test_a_benchmark_plans_the_runs_that_come_of_it(tmp_path: Path) -> None:
    stores(tmp_path, "abc", "abd")
    write_store(tmp_path, "strange", names=list("xyz"))
    bench = Bench(
        methods=("gda", "ueo"), store=tmp_path, protocol="domain-adaptation", source="source",
        shots=(2,), seeds=(1,),
    )  # fmt: skip
    made = plan(bench)
    assert len(made.left_out) == 1
    assert "strange" in made.left_out[0]
    done = [adapt(cell.learned, cell.tested, cell.run.method, cell.protocol) for cell in made.cells]
    assert [one.run for one in done] == [cell.run for cell in made.cells]
