"""A method written outside the package, from its line in `METHODS` to everything that runs it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.images.decode import read_rgb
from cache.models.loading import load
from cache.store import FeatureStore
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.export.onnx_graph import graph_of
from fewshot.adapters.opened_adapter import open_adapter
from fewshot.adapters.predict import predict
from fewshot.automatic.outcome import Outcome
from fewshot.automatic.pipeline import auto
from fewshot.bench.benchmark import run
from fewshot.bench.config import Bench
from fewshot.bench.plan import plan
from fewshot.checks import positive
from fewshot.classifier import BlockedClassifier
from fewshot.estimator import FewShotClassifier
from fewshot.evaluation import evaluate
from fewshot.method import Grid, Method
from fewshot.methods import METHODS
from fewshot.results.log import read
from fewshot.settings import configure
from fewshot.support import SupportSet
from fewshot.text import Text
from tests.auto_photos import draw_digits
from tests.small_stores import write_store

COUNTS = {"zero": 12, "one": 12, "two": 12}


@dataclass(frozen=True, eq=False)
class Neighbor(BlockedClassifier):
    """The largest cosine to an image of the class."""

    keys: Tensor
    labels: Tensor
    n_classes: int
    scale: float
    stats: Mapping[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "neighbor"

    @property
    def block(self) -> int:
        return 5

    def block_logits(self, features: Tensor) -> Tensor:
        cosines = features @ self.keys.T
        own = [cosines[:, self.labels == k].amax(dim=1) for k in range(self.n_classes)]
        return self.scale * torch.stack(own, dim=1)


@dataclass(frozen=True)
class NearestNeighbor(Method):
    """The class of the nearest image."""

    scale: float = 10.0

    name: ClassVar[str] = "nearest-neighbor"
    summary: ClassVar[str] = "Finds the photo that looks most like the new one."
    grid: ClassVar[Grid] = {"scale": (1.0, 10.0, 50.0)}
    saved_as: ClassVar[tuple[type, ...]] = (Neighbor,)

    def __post_init__(self) -> None:
        positive(self, "scale")

    def fit(self, support: SupportSet, text: Text | None) -> Neighbor:
        return Neighbor(support.features, support.labels, support.n_classes, self.scale)


@pytest.fixture(scope="module")
def name() -> Iterator[str]:
    """The line in the dictionary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "nearest-neighbor", NearestNeighbor)
        yield "nearest-neighbor"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_digits(tmp_path_factory.mktemp("outside") / "photos", COUNTS)


@pytest.fixture(scope="module")
def outcome(name: str, photos: Path) -> Outcome:
    home = photos.parent
    return auto(
        photos, model="tiny", methods=("zero-shot", name), out=home / "out", store=home / "features"
    )


def test_it_is_fitted_tuned_and_tested(name: str, tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(tmp_path, "toy"))
    result = evaluate(store, configure(name), shots=2, seed=1)
    assert (result.method, result.tune) == (name, "cv")
    assert result.hyperparameters["scale"] in NearestNeighbor.grid["scale"]


def test_a_benchmark_runs_it(name: str, tmp_path: Path) -> None:
    write_store(tmp_path / "features", "toy")
    bench = Bench(
        methods=("zero-shot", name), shots=(1, 2), seeds=(1,),
        store=tmp_path / "features", out=tmp_path / "out",
    )  # fmt: skip
    run(bench, plan(bench), lambda line: None)
    ran = [(one.method, one.shots) for one in read(bench.out / "results.jsonl")]
    assert sorted(ran) == [(name, 1), (name, 2), ("zero-shot", 0)]


def test_auto_tries_it_and_tells_people_what_it_does(name: str, outcome: Outcome) -> None:
    assert outcome.validation.selection is not None
    assert name in {one.name for one in outcome.validation.selection.scores}
    assert NearestNeighbor.summary in (outcome.out / "report.html").read_text()


def test_what_is_saved_predicts_and_exports(name: str, photos: Path, outcome: Outcome) -> None:
    assert outcome.winner == name
    adapter = load_adapter(outcome.adapter_path)
    files = sorted(photos.glob("*/*.png"))
    said = list(predict(adapter, [str(path) for path in files]))
    right = [one.label == path.parent.name for one, path in zip(said, files, strict=True)]
    assert sum(right) >= 0.9 * len(files)  # what is blended with zero-shot need not learn by heart
    predictor = open_adapter(adapter)
    pixels = torch.stack([predictor.preprocess.center(read_rgb(p, exif=True)) for p in files])
    with torch.no_grad():
        logits, _ = graph_of(adapter, load("tiny", device="cpu"))(pixels)  # what ONNX is made of
    expected = predictor.logits(predictor.features(pixels))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_scikit_learn_calls_it_by_name(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    rows = rng.normal(size=(3, 8))[labels] + 0.1 * rng.normal(size=(30, 8))
    estimator = FewShotClassifier(name, tune="cv").fit(rows, labels)
    assert (estimator.predict(rows) == labels).all()
