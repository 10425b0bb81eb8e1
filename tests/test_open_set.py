import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from cli import main
from fewshot import SupportSet, configure, evaluate, fit
from fewshot.bench.config import Bench, configured
from fewshot.bench.mean_table import mean_table
from fewshot.bench.plan import plan
from fewshot.classifier import LinearClassifier
from fewshot.method import LearnsFrom, Method
from fewshot.open_set import SCORES, Score, auroc, fpr_at_95, knownness, parse_known
from fewshot.protocol import Protocol
from fewshot.results.log import Result
from fewshot.results.summaries import accuracy_table
from fewshot.sampling import draw
from fewshot.text import Text, required
from tests.small_stores import NAMES, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.open(write_store(tmp_path_factory.mktemp("stores"), "four"))


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_area_and_false_positives_are_those_of_scikit_learn_with_ties_or_without(
    decimals: int,
) -> None:
    rng = np.random.default_rng(decimals)
    for n, m in ((1, 1), (20, 7), (61, 300)):
        known = rng.normal(1, 1, n).round(decimals)
        unknown = rng.normal(0, 1, m).round(decimals)
        truth, scores = np.repeat([1, 0], [n, m]), np.concatenate([known, unknown])
        assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, scores))
        fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
        assert fpr_at_95(known, unknown) == fpr[tpr >= 0.95].min()


def test_scores_are_those_of_their_definitions() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0], [0.0, 0.0, 0.0]])
    for row, z in enumerate(logits.tolist()):
        total = sum(math.exp(one) for one in z)
        for score, expected in (
            ("max-logit", max(z)),
            ("energy", math.log(total)),
            ("max-softmax", math.exp(max(z)) / total),
            ("mcm", math.exp(max(z) / 10) / sum(math.exp(one / 10) for one in z)),
        ):
            got = knownness(logits, score, 10.0)[row]  # type: ignore[arg-type]  # a plain str of the loop
            assert float(got) == pytest.approx(expected)


@pytest.mark.parametrize("score", SCORES)
def test_a_result_is_what_its_definition_gives(store: FeatureStore, score: Score) -> None:
    asked = Protocol(shots=4, tune="none", blend=1.0, known=["dog", "bee"], score=score)
    result = evaluate(store, "gda", asked)
    train, test = store.split("train"), store.split("test")
    rows = draw(train.labels, NAMES, shots=4, seed=1).train
    rows = rows[np.isin(train.labels[rows], [1, 3])]
    method = configure("gda", logit_scale=store.logit_scale)
    text = Text(torch.from_numpy(store.text("unit-mean", "templates")[[1, 3]]))
    labels = torch.from_numpy(train.labels[rows] // 2)
    support = SupportSet(torch.from_numpy(train.features(rows)), labels, 2)
    classifier = method.fit(support, text)
    z = classifier.logits(torch.from_numpy(test.features())).double()
    known = torch.from_numpy(np.isin(test.labels, [1, 3]))
    scores = {
        "mcm": (z / 50).softmax(dim=1).amax(dim=1),
        "max-softmax": z.softmax(dim=1).amax(dim=1),
        "max-logit": z.amax(dim=1),
        "energy": z.exp().sum(dim=1).log(),
    }[score]
    right = (1 + 2 * z.argmax(dim=1) == torch.from_numpy(test.labels))[known].double().mean()
    area = roc_auc_score(known.numpy(), scores.numpy())
    assert result.accuracies["known"] == pytest.approx(float(right))
    assert result.accuracies["auroc"] == pytest.approx(area)
    assert result.accuracy == pytest.approx(2 / (1 / float(right) + 1 / area))
    assert (result.setting, result.known, result.score) == ("open-set", ("bee", "dog"), score)
    assert (result.n_test, result.n_support) == (30, 8)
    assert Result.from_json(result.to_json()) == result


def test_a_number_of_known_classes_is_as_many_of_the_first(store: FeatureStore) -> None:
    one, other = (evaluate(store, "gda", shots=2, known=known) for known in (3, NAMES[:3]))
    assert one.accuracies == other.accuracies
    assert fit(store, "gda", shots=2, known=3).classifier.logits(torch.ones(1, 8)).shape == (1, 3)
    assert parse_known(" 3", "dtd") == 3
    assert parse_known("cat, dog", "dtd") == ("cat", "dog")
    assert parse_known("published", "Office31-Amazon") == 25
    assert parse_known("published", "office31_dslr", "office31_webcam") == 25
    with pytest.raises(UserError, match="no open set of dtd is published; give --known a number"):
        parse_known("published", "office31_dslr", "dtd")
    with pytest.raises(UserError, match="25 of office31_dslr, 8 of visda_c_train; give datasets"):
        parse_known("published", "office31_dslr", "visda_c_train")
    with pytest.raises(UserError, match="goes by the dataset; name the datasets as well"):
        parse_known("published")


@dataclass(frozen=True)
class Unlabeled(Method):
    """Zero-shot, and how many images it was given."""

    name: ClassVar[str] = "unlabeled"
    learns_from: ClassVar[LearnsFrom] = "images"

    def fit(self, support: SupportSet, text: Text | None) -> LinearClassifier:
        raise AssertionError("it was given labels")

    def fit_unlabeled(self, images: Tensor | None, text: Text | None) -> LinearClassifier:
        assert images is not None
        return LinearClassifier(required(text, self.name), stats={"images": float(len(images))})


def test_a_method_without_labels_is_given_the_unknown_images_too(store: FeatureStore) -> None:
    result = evaluate(store, Unlabeled(), known=2)
    assert result.measures == {"images": 80.0}
    assert result.n_support == 80
    assert evaluate(store, Unlabeled()).setting == "unsupervised"


def test_results_with_other_known_classes_or_scores_are_of_other_runs(store: FeatureStore) -> None:
    results = [
        evaluate(store, "zero-shot", known=2),
        evaluate(store, "zero-shot", known=3),
        evaluate(store, "zero-shot", known=2, score="energy"),
    ]
    assert len({result.row for result in results}) == 3
    assert len({result.file_name for result in results}) == 3
    rows = accuracy_table(results).splitlines()
    assert [row.split()[3:8] for row in rows[1:5]] == [["open-set", "2", "known", "by", "mcm"]] * 4
    parts = [row.split()[9] for row in rows[1:5]]
    assert parts == ["known", "auroc", "fpr95", "H"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"known": 1}, "two known classes are needed to tell apart; got 1"),
    ({"known": ["ant"]}, "two known classes are needed to tell apart; got 1"),
    ({"known": ["ant", "cow"]}, "unknown class 'cow'"),
    ({"known": ["ant", "bee", "ant"]}, "ant is among the known classes twice"),
    ({"known": 4}, "no class of 4 is left to be unknown"),
    ({"known": "ant,bee"}, "a number of classes or a list of names"),
    ({"setting": "open-set"}, "open-set needs the known classes; give known"),
    (
        {"known": 2, "setting": "base-to-new"},
        "belong to the setting open-set alone; got base-to-new",
    ),
    ({"known": 2, "score": "margin"}, "unknown score of known images"),
    ({"known": 2, "shots": "all"}, "imbalance natural and open-set exclude one another"),
]


@pytest.mark.parametrize(("asked", "message"), WRONG)
def test_what_cannot_be_is_refused_in_one_line(
    store: FeatureStore, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(store, "gda", **{"shots": 2, **asked})


def test_a_name_of_two_classes_cannot_be_known_and_unknown(tmp_path: Path) -> None:
    twice = write_store(tmp_path, "cranes", names=("crane", "bee", "crane", "dog"))
    with pytest.raises(UserError, match="crane is the name of a known and of an unknown class"):
        evaluate(twice, "zero-shot", known=2)
    with pytest.raises(UserError, match="crane is the name of two classes"):
        evaluate(twice, "zero-shot", known=["crane", "bee"])


def test_the_commands_take_known_classes_and_run_again_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "features", "four")
    monkeypatch.chdir(tmp_path)
    asked = ["--known", "cat,ant", "--score", "energy", "--shots", "2", "--json"]
    assert main(["fit", "gda", "--dataset", "four", *asked]) == 0
    first = Result.from_json(capsys.readouterr().out)
    assert first.known == ("ant", "cat")
    again = first.command(Path("features"), Path("runs")).split()
    assert main([*again[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracies"] == first.accuracies
    assert main(["fit", "gda", "--score", "energy"]) == 2
    assert "--known" in capsys.readouterr().err
    assert main(["fit", "gda", "--known", "2", "--base-to-new"]) == 2


def test_a_benchmark_plans_the_runs_that_come_of_it(tmp_path: Path) -> None:
    write_store(tmp_path, "four")
    write_store(tmp_path, "three", names=NAMES[:3])
    file = tmp_path / "bench.toml"
    file.write_text('known = ["ant", "dog"]\nscore = "max-logit"\nmethods = ["gda"]\nshots = [2]')
    bench = configured({"store": tmp_path, "seeds": (1, 2)}, file)
    made = plan(bench)
    assert {cell.run.dataset for cell in made.cells} == {"four"}
    assert made.left_out[0].startswith("three: unknown class 'dog'")
    done = [evaluate(cell.tested, "gda", cell.protocol) for cell in made.cells]
    assert [one.run for one in done] == [cell.run for cell in made.cells]
    table = mean_table(done)
    assert [line[2] for line in table.rows] == ["known", "auroc", "fpr95", "H"]
    assert Bench(known=3).protocol == "open-set"


def test_a_mean_is_never_over_different_known_classes(store: FeatureStore) -> None:
    one = evaluate(store, "zero-shot", known=2)
    table = mean_table([one, replace(one, known=3, dataset="other")])
    assert len(table.rows) == 8
    assert Protocol(known=2).setting == "open-set"
