from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.location import find_stores
from cache.store import FeatureStore
from cli import main
from tests.typed import refusal

pytestmark = pytest.mark.usefixtures("empty_folder")


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
