import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import GDA, METHODS, SupportSet, Text, configure, evaluate, fit
from fewshot.adapters.classifiers import put_together, take_apart
from fewshot.adapters.export.onnx_graph import formula
from fewshot.classifier import LinearClassifier
from fewshot.model_selection.blending import (
    Blend,
    BlendedClassifier,
    blend_of,
    share_of,
)
from fewshot.model_selection.protocols import Share
from fewshot.model_selection.tuning import fit_tuned, tune
from fewshot.parts import doubt as doubts
from fewshot.parts.doubt import doubt
from fewshot.results.log import Result
from tests.small_stores import write_store
from tests.toys import in_turn, task, vectors

SCALE = 30.0


def test_doubt_is_the_part_of_a_labels_entropy_that_zero_shot_leaves_open() -> None:
    support, text, _ = task(5, shots=3)
    total = 0.0
    for feature, label in zip(support.features, support.labels, strict=True):
        scores = [SCALE * float(feature @ t) for t in text.features]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[label]
    expected = total / len(support.labels) / math.log(5)
    assert 0.01 < expected < 1
    assert doubt(support, SCALE * text.features) == pytest.approx(expected, rel=1e-4)


def test_doubt_of_a_large_support_set_is_of_some_of_its_images_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, text, _ = task(5, shots=4)
    zero_shot = SCALE * text.features
    whole = doubt(support, zero_shot)
    monkeypatch.setattr(doubts, "LOGITS", 3 * 5)
    assert doubt(support, zero_shot) == pytest.approx(whole, rel=1e-6)
    half = doubt(support.subset(torch.arange(0, 20, 2)), zero_shot)
    monkeypatch.setattr(doubts, "JUDGED", 10)
    assert doubt(support, zero_shot) == pytest.approx(half, rel=1e-6) != whole


def test_doubt_is_1_where_zero_shot_says_less_than_nothing() -> None:
    support, text, _ = task(4)
    assert doubt(support, -SCALE * text.features) == 1


@pytest.mark.parametrize(
    ("doubt", "shots", "share"),
    [(0.22, 1, 1), (0.5, 1, 1), (0.11, 1, 0.25), (0.11, 4, 0.5), (0.11, 16, 1), (0.0, 16, 0)],
)
def test_the_share_grows_with_doubt_and_with_shots(doubt: float, shots: int, share: float) -> None:
    assert share_of(doubt, shots) == pytest.approx(share)


def blended(name: str, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of zero-shot, of the method, and of their blend."""
    support, text, query = task(4)
    method = METHODS[name]()
    blend = blend_of(method, support, text, logit_scale=SCALE, share=share)
    assert blend is not None
    adapted = method.fit(support, text)
    zero_shot = SCALE * query @ text.features.T
    return zero_shot, adapted.logits(query), blend.classifier(adapted).logits(query)


@pytest.mark.parametrize("name", ["gda", "ridge", "tip-adapter", "proker", "tip-x"])
def test_logits_lie_between_zero_shots_and_the_methods(name: str) -> None:
    for share in (0.0, 0.3):
        zero_shot, adapted, got = blended(name, share)
        expected = (1 - share) * zero_shot + share * adapted
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(adapted, zero_shot, atol=0.1)


def test_a_blend_of_linear_classifiers_is_linear() -> None:
    support, text, _ = task(4)
    blend = Blend(SCALE * text.features, 0.3, 0.1)
    gda, votes = (METHODS[name]().fit(support, text) for name in ("gda", "tip-adapter"))
    assert isinstance(blend.classifier(gda), LinearClassifier)
    assert isinstance(blend.classifier(votes), BlendedClassifier)
    assert blend.classifier(gda).stats == {**gda.stats, "share": 0.3, "doubt": 0.1}


@pytest.mark.parametrize("name", ["gda", "tip-adapter", "clip-adapter"])
def test_a_blend_is_saved_and_exported_like_any_other_classifier(name: str) -> None:
    support, text, query = task(4)
    method = METHODS[name]()
    blend = Blend(SCALE * text.features, 0.3, 0.1)
    classifier = blend.classifier(method.fit(support, text))
    plain, tensors = take_apart(classifier)
    again = put_together(json.loads(json.dumps(plain)), tensors)
    torch.testing.assert_close(again.logits(query), classifier.logits(query))
    torch.testing.assert_close(formula(plain, tensors)(query), classifier.logits(query))


@pytest.mark.parametrize("name", ["nearest-mean", "linear-probe", "transclip"])
def test_methods_that_stand_alone_are_never_blended(name: str) -> None:
    support, text, _ = task(4)
    assert blend_of(METHODS[name](), support, text, logit_scale=SCALE, share=0.5) is None


def test_there_is_no_blend_without_text_nor_with_the_whole_share() -> None:
    support, text, _ = task(4)
    assert blend_of(GDA(), support, None, logit_scale=SCALE) is None
    assert blend_of(GDA(), support, text, logit_scale=SCALE, share=1) is None
    opposed = Text(-text.features)  # zero-shot knows nothing, so the method has it all
    assert blend_of(GDA(), support, opposed, logit_scale=SCALE) is None


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "much"])
def test_a_share_is_auto_or_a_fraction(share: object) -> None:
    support, text, _ = task(4)
    with pytest.raises(UserError, match=r"blend must be auto, or a number from 0 .* to 1"):
        blend_of(GDA(), support, text, logit_scale=SCALE, share=share)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gda", "ridge", "proker", "tip-adapter", "text-probe"])
def test_where_names_say_nearly_all_one_image_of_each_class_does_no_harm(name: str) -> None:
    centers, labels = vectors(0, 20, 32), in_turn(20, 20)
    query = normalize(centers[labels] + 1.5 * vectors(5, len(labels), 32))
    support = SupportSet(normalize(centers + 1.5 * vectors(7, 20, 32)), torch.arange(20), 20)
    method = configure(name, logit_scale=20.0)

    def accuracy(share: Share) -> float:
        _, classifier = fit_tuned(
            method, support, Text(centers), protocol="none", logit_scale=20.0, share=share
        )
        return float((classifier.logits(query).argmax(dim=1) == labels).float().mean())

    zero_shot = float(((query @ centers.T).argmax(dim=1) == labels).float().mean())
    assert 0.9 < zero_shot < 1
    assert accuracy("auto") >= zero_shot - 0.005  # two images of 400
    assert accuracy("auto") >= accuracy(1.0)


def test_variants_are_judged_blended() -> None:
    support, text, _ = task(4, shots=6)
    nothing = Blend(SCALE * text.features, 0.0, 0.1)  # all variants are zero-shot, and equal
    assert tune(GDA(), support, text, protocol="cv", blend=nothing) == GDA()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore.open(write_store(tmp_path_factory.mktemp("stores"), "toy"))


def test_a_result_says_which_share_was_asked_for_and_which_it_became(store: FeatureStore) -> None:
    asked = evaluate(store, "gda", shots=2, blend=0.25, tune="none")
    assert asked.blend == 0.25
    assert asked.measures["share"] == 0.25
    assert 0 <= asked.measures["doubt"] <= 1
    assert "--blend 0.25" in asked.command(Path("features"), Path("runs"))
    assert asked.name == "gda blend=0.25"
    assert Result.from_json(asked.to_json()) == asked
    alone = evaluate(store, "gda", shots=2, blend=1.0, tune="none")
    assert "share" not in alone.measures
    assert evaluate(store, "nearest-mean", shots=2, blend=0.25).blend == "auto"


def test_fit_alone_is_the_method_itself(store: FeatureStore) -> None:
    fitted = fit(store, "gda", shots=2, blend=1.0, tune="none")
    assert fitted.support is not None
    own = fitted.method.fit(fitted.support, fitted.text)
    query = fitted.support.features
    torch.testing.assert_close(fitted.classifier.logits(query), own.logits(query))
