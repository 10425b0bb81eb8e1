import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import UserError
from cache.pair import Pair
from cache.store import FeatureStore
from cli import main
from fewshot.adapters.predict import predict
from fewshot.automatic import backbones
from fewshot.automatic.backbones import Backbone, choose, losses
from fewshot.automatic.judging import CrossValidation, judge
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.pipeline import auto
from fewshot.model_selection.cross_validation import OutOfFold
from fewshot.model_selection.selection import MethodScore, Selection, select
from fewshot.settings import configure
from tests.auto_photos import draw_digits
from tests.small_stores import write_store

METHODS = ("nearest-mean", "ridge")
N = 6  # photos of each class


def compared(photos: Path, models: str, **options: Any) -> Outcome:
    home = photos.parent
    usual = {"methods": METHODS, "out": home / "out", "store": home / "features"}
    return auto(photos, models=models.split(","), device="cpu", **{**usual, **options})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_digits(tmp_path / "photos", dict.fromkeys(("three", "five", "eight", "nine"), N))


def test_every_model_encodes_once_and_the_best_is_named_with_its_price(
    photos: Path, random_vit: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weak, said = f"local-dir:{random_vit}", []  # type: tuple[str, list[str]]
    scenes: list[Any] = []

    def watched(*given: Any, groups: Any, **more: Any) -> Any:
        for found in judge(*given, groups=groups, **more):
            scenes.append((groups, found.groups))
            yield found

    monkeypatch.setattr(backbones, "judge", watched)
    found = compared(photos, f"{weak},tiny", say=said.append)
    assert len(encoded) == 2 * 4 * N
    assert scenes[0][0] is None
    assert scenes[1][0] is scenes[0][1]  # the folds of the second model are those of the first
    assert found.adapter.model_name == found.store.model == "tiny"
    assert {one.model for one in found.backbones} == {weak, "tiny"}
    assert all(one.seconds > 0 for one in found.backbones)
    [first] = [line for line in said if line.startswith("first answer: ")]
    assert f"it is in {found.out}, and stays if you stop here; 1 further model to try" in first
    prices = [line for line in said if "ms per image, 24 images in about" in line]
    assert [line.split(": ")[0] for line in prices] == [weak, "tiny"]
    assert "best of 2 models: tiny, " in found.summary()
    record = json.loads((found.out / "report.json").read_text())
    assert record["accuracy"] == found.accuracy
    assert {one["model"] for one in record["backbones"]} == {weak, "tiny"}
    page = found.page_path.read_text()
    assert "Models, the fastest first" in page
    assert f"--models {weak},tiny " in found.commands[0].line
    assert "--model tiny" not in found.commands[0].line
    assert "--model tiny" in found.commands[2].line
    again = compared(photos, f"{weak},tiny,{weak}+tiny")
    assert len(encoded) == 2 * 4 * N
    assert {one.model for one in again.backbones} == {weak, "tiny", f"{weak}+tiny"}


def test_the_first_answer_is_the_fastest_models_and_says_what_follows(
    photos: Path, random_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = f"local-dir:{random_vit}"
    seconds = {"tiny": 1.0, slow: 3.0}
    monkeypatch.setattr(
        backbones, "seconds_per_image", lambda encoder, _: seconds[encoder.identity["name"]]
    )
    pages: list[Outcome] = []
    monkeypatch.setattr("fewshot.automatic.pipeline.write", pages.append)
    compared(photos, f"{slow},tiny", methods=["nearest-mean"])
    first, last = pages
    assert first.adapter.model_name == "tiny"
    assert [one.model for one in first.backbones] == ["tiny"]
    assert first.validation.pending == (slow,)
    assert first.adapter.training["still to be tried"] == [slow]
    assert {one.model for one in last.backbones} == {"tiny", slow}
    assert not last.validation.pending


def test_a_pair_is_judged_at_each_weight_and_its_classifier_repeated_by_the_command(
    photos: Path, random_vit: Path, encoded: list[str]
) -> None:
    home, model = photos.parent, f"local-dir:{random_vit}+tiny"
    unlabeled = draw_digits(home / "new", {"three": 2, "five": 2}, split="test")
    found = auto(
        photos, model=model, methods=METHODS, out=home / "out", store=home / "features",
        unlabeled=unlabeled, device="cpu",
    )  # fmt: skip
    assert len(encoded) == 2 * (4 * N + 4)
    assert isinstance(found.store, Pair)
    assert found.adapter.beside is not None
    weight = found.adapter.beside.weight
    assert weight == found.store.share
    assert weight in backbones.WEIGHTS
    assert f"{model} with weight {weight} for the first" in found.summary()
    assert json.loads((found.out / "report.json").read_text())["pair_weight"] == weight
    fit_again = shlex.split(found.commands[2].line)[1:-1]
    assert main([*fit_again, str(home / "again.safetensors")]) == 0
    files = sorted(unlabeled.rglob("*.png"))
    both = [
        predict(path, files, device="cpu")
        for path in (found.adapter_path, home / "again.safetensors")
    ]
    assert [one.classes for one in both[0]] == [one.classes for one in both[1]]
    assert [one.confidence for one in both[0]] == pytest.approx([o.confidence for o in both[1]])
    listed = (found.out / "predictions.csv").read_text()
    assert all(one.classes[0] in listed for one in both[0])


def guesses(
    root: Path, models: int, methods: tuple[str, ...]
) -> list[tuple[FeatureStore, CrossValidation]]:
    """Methods that guess one of four classes of 80 images, on several models."""
    drawn = torch.Generator().manual_seed(0)
    tried = []
    for m in range(models):
        store = FeatureStore.open(write_store(root, "toys", f"m{m}"))
        labels = torch.from_numpy(store.labels("train"))
        judged = torch.ones(len(labels), dtype=torch.bool)
        answers = []
        for name in methods:
            logits = torch.randn(len(labels), 4, generator=drawn)
            right = logits.argmax(dim=1) == labels
            answers.append(OutOfFold(name, (), judged, right, logits, 1.0))
        found = CrossValidation(
            labels, torch.arange(len(labels)), torch.arange(len(labels)) % 5, tuple(answers),
            (), (), (), {}, None, configure("gda"),
        )  # fmt: skip
        tried.append((store, found))
    return tried


def test_the_accuracy_is_corrected_for_the_choice_among_all_models_and_methods(
    tmp_path: Path,
) -> None:
    tried = guesses(tmp_path, 4, ("gda", "ridge", "nearest-mean"))
    found = choose(tried, dict.fromkeys([store.model for store, _ in tried], 0.1))
    every = [
        replace(one, name=f"{store.model} {one.name}")
        for store, judged in tried
        for one in judged.tried
    ]
    labels = tried[0][1].labels
    expected = select(every, labels)
    selection = found.validation.selection
    assert selection is not None
    assert (found.model, selection.winner) == tuple(expected.winner.split())
    assert (selection.accuracy, selection.interval) == (expected.accuracy, expected.interval)
    assert found.validation.method.name == selection.winner
    assert {score.name for score in selection.scores} == {"gda", "ridge", "nearest-mean"}
    flattered = max(one.accuracy for one in every)
    assert selection.accuracy < flattered - 0.03


def test_only_faster_models_are_said_to_lose_something() -> None:
    def score(accuracy: float, behind: tuple[float, float]) -> MethodScore:
        return MethodScore("gda", accuracy, (0, 1), accuracy, 1, 1, 0, behind, 1, 1)

    models = [
        Backbone("small", 0.002, score(0.8, (0.01, 0.2))),
        Backbone("middle", 0.02, score(0.9, (0, 0))),
        Backbone("large", 0.2, score(0.85, (0, 0.1))),
    ]
    selection = Selection("gda", 0.9, (0.8, 1), (), 50, 50)
    assert losses(models, selection, "middle") == [
        "small with gda takes 2.0 ms and loses 10.0 in 100 of 50 photos (95 % interval 1.0 to 20.0)"
    ]


def test_quick_leaves_out_what_is_slow_or_not_on_this_machine_but_never_the_fastest(
    photos: Path, random_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, absent = f"local-dir:{random_vit}", "ViT-B-32/openai"
    monkeypatch.setitem(backbones.LISTS, "quick", (("tiny", slow, absent), 10.0))
    monkeypatch.setattr(backbones, "at_hand", lambda model: model != absent)
    seconds = {"tiny": 1.0, slow: 3.0}
    monkeypatch.setattr(
        backbones, "seconds_per_image", lambda encoder, _: seconds[encoder.identity["name"]]
    )
    said: list[str] = []
    found = compared(photos, "quick", say=said.append)
    assert [one.model for one in found.backbones] == ["tiny"]
    assert f"{slow} is left out, as it takes longer than 10 s; name it to try it" in said


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (",", "--models must name one model or more, or be quick or best; got none"),
        ("tiny,no-such", "unknown model 'no-such'"),
        ("tiny+tiny+tiny", "a pair is two models with + between"),
    ],
)
def test_models_that_cannot_be_tried_are_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: str, message: str
) -> None:
    options = ["--models", models, "--store", str(tmp_path / "f"), "--out", str(tmp_path / "o")]
    assert main(["auto", str(photos), *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fewshot: ")
    assert message in last


def test_models_are_not_compared_where_no_class_has_a_second_photo(tmp_path: Path) -> None:
    photos = draw_digits(tmp_path / "photos", {"zero": 1, "one": 1})
    with pytest.raises(UserError, match="models cannot be compared; name one with --model"):
        compared(photos, "tiny", methods=["gda"])
