"""Unknown images and prediction sets: what an adapter keeps for them, and its use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from fewshot.adapters import adapter_file
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.answers import Answers, require_asked
from fewshot.adapters.description import describe
from fewshot.adapters.image_results import PredictionForm
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.model_selection.conformal import by_class, p_values, thresholds
from fewshot.model_selection.unknown_classes import find_open_set
from fewshot.support import SupportSet
from tests.toy_adapters import fitted_adapter

HELD_OUT = ((0.2, 0.6, 0.9), (0.3, 0.5, 0.7), (0.1, 0.4, 0.8))


def clouds(dim: int, n_classes: int = 6, images: int = 8) -> SupportSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n_classes).repeat(images)
    means = torch.randn(n_classes, dim, generator=generator)
    noise = torch.randn(len(labels), dim, generator=generator)
    return SupportSet(normalize(means[labels] + 0.4 * noise), labels, n_classes)


@pytest.fixture(scope="module")
def adapter(encoder: Encoder) -> Adapter:
    made = fitted_adapter(encoder, "gda")
    return replace(made, held_out=HELD_OUT, open_set=find_open_set(clouds(encoder.dim), None))


def test_all_of_it_is_read_as_it_was_saved(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "a.safetensors")
    read = load_adapter(tmp_path / "a.safetensors")
    assert (read.held_out, read.format) == (HELD_OUT, 3)
    assert read.tensors.keys() == adapter.tensors.keys()
    assert adapter.open_set is not None
    assert read.open_set is not None
    for name in ("name", "held_out", "auroc", "range", "refused", "compared"):
        assert getattr(read.open_set, name) == getattr(adapter.open_set, name)
    query = torch.randn(5, read.tensors["weight"].shape[1])
    assert torch.equal(read.open_set.score.score(query), adapter.open_set.score.score(query))
    text = describe(read)
    assert "AUROC on hidden classes" in text
    assert "thresholds from 9 held-out images" in text


def test_a_file_of_format_2_is_read_and_has_neither(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.safetensors"
    plain = fitted_adapter(encoder, "gda")
    old = {k: v for k, v in plain.card().items() if k not in ("held_out", "open_set")}
    monkeypatch.setattr(adapter_file, "FORMAT", 2)
    adapter_file.write_adapter(path, old, plain.tensors)
    monkeypatch.undo()
    read = load_adapter(path)
    assert (read.format, read.held_out, read.open_set) == (2, (), None)
    with pytest.raises(UserError, match="cannot recognize unknown images; fit it again by"):
        require_asked(read, PredictionForm(unknown=True))
    with pytest.raises(UserError, match="takes 9 held-out images, and there are 0"):
        require_asked(read, PredictionForm(coverage=0.9))


@pytest.mark.parametrize("how", ["unsorted", "missing tensor", "no entry", "wrong kind"])
def test_an_entry_that_does_not_fit_is_refused(adapter: Adapter, tmp_path: Path, how: str) -> None:
    adapter.save(tmp_path / "a.safetensors")
    entries, tensors = adapter_file.read_adapter(tmp_path / "a.safetensors")
    entry = entries["open_set"]
    if how == "unsorted":
        entry["held_out"].reverse()
    elif how == "missing tensor":
        del tensors[next(name for name in tensors if name.startswith("open_set."))]
    elif how == "no entry":
        entries["open_set"] = None
    else:
        entry["score"]["kind"] = "linear"
    written = {k: v for k, v in entries.items() if k not in ("format", "digest")}
    adapter_file.write_adapter(tmp_path / "b.safetensors", written, tensors)
    with pytest.raises(UserError, match="open_set"):
        load_adapter(tmp_path / "b.safetensors")


def test_answers_are_those_of_the_score_and_the_thresholds(
    encoder: Encoder, adapter: Adapter
) -> None:
    predictor = with_encoder(adapter, encoder)
    x: Tensor = normalize(torch.randn(40, encoder.dim, generator=torch.Generator().manual_seed(1)))
    x[:8] = clouds(encoder.dim).features[:8]
    found = list(Answers(predictor, PredictionForm(2, 0.0, True, 0.7))(list("abcd") * 10, x))
    probabilities = predictor.probabilities(x)
    at = thresholds(HELD_OUT, 0.7)
    assert adapter.open_set is not None
    expected = p_values(adapter.open_set.score.score(x), adapter.open_set.held_out)
    for i, one in enumerate(found):
        assert one.p_value == float(expected[i])
        assert (one.label == "unknown") == (float(expected[i]) <= 0.05)
        p = probabilities[i]
        members = {k for k in range(3) if p[k] >= at[k]} | {int(p.argmax())}
        assert one.prediction_set is not None
        assert set(one.prediction_set) == {adapter.classnames[k] for k in members}
        assert one.prediction_set[0] == one.classes[0]
        assert len(one.classes) == 2
    assert {one.label == "unknown" for one in found} == {True, False}


def test_probabilities_of_held_out_images_are_kept_by_class_in_order() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    kept = by_class(logits, torch.tensor([0, 0, 1, 1]), 2.0)
    p = torch.softmax(logits.double() / 2, 1)
    assert kept == ((0.5, float(p[0, 0])), (float(p[3, 1]), float(p[2, 1])))
