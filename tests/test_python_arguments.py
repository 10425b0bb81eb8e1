"""The Python functions take a path as text as well as a `Path`."""

from pathlib import Path

import fewshot
from cache.store import FeatureStore
from cli import main
from tests.small_stores import write_store


def test_a_sample_is_written_and_read_by_its_name_as_text(tmp_path: Path) -> None:
    store = FeatureStore.open(str(write_store(tmp_path, "pets")))
    few = fewshot.draw(store.labels("train"), store.classnames, shots=2, seed=1)
    name = str(tmp_path / "sample.json")
    fewshot.write_sample(name, few, store)
    assert fewshot.read_sample(name, store).train.tolist() == few.train.tolist()


def test_auto_takes_folders_as_text(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    assert main(["demo", "--photos", str(photos)]) == 0
    outcome = fewshot.auto(
        str(photos),
        model="tiny",
        out=str(tmp_path / "out"),
        store=str(tmp_path / "stores"),
        unlabeled=str(photos / "unlabeled"),
        methods=["zero-shot", "nearest-mean"],
    )
    assert outcome.adapter_path.parent == tmp_path / "out"
