import json
from dataclasses import replace

import pytest
import torch

from cache.errors import UserError
from cache.models.encoder import Encoder, wrap
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.opened_adapter import with_encoder
from fewshot.adapters.same_model import preprocessing, require_model
from fewshot.model_selection.calibration import Calibration
from tests.toy_adapters import made_of


def on(encoder: Encoder, pets: FeatureStore) -> Adapter:
    adapter = made_of(pets)
    preprocess = {**encoder.preprocess.identity(), "exif": True}
    return replace(adapter, model=dict(encoder.identity), preprocessing=preprocess)


def test_another_backbone_is_refused_and_both_are_named(
    pets: FeatureStore, encoder: Encoder
) -> None:
    adapter = on(encoder, pets)
    other = {**encoder.identity, "weights": "f" * 64, "name": "other/one", "dim": 512}
    here = str(encoder.identity["weights"])[:12]
    expected = (
        rf"made with local-dir:.* \(weights {here}, D = 16\), and this is other/one \(weights f"
    )
    with pytest.raises(UserError, match=expected):
        require_model(adapter.model, other)
    require_model(adapter.model, {**encoder.identity, "name": "local-dir:elsewhere"})


def test_a_model_of_unknown_weights_is_told_by_its_width(
    pets: FeatureStore, encoder: Encoder
) -> None:
    adapter = replace(on(encoder, pets), model={"name": "x", "logit_scale": 1.0, "dim": 8})
    with pytest.raises(UserError, match="weights unknown, D = 8"):
        require_model(adapter.model, encoder.identity)


def test_images_go_to_the_model_as_those_that_were_learned_from(
    pets: FeatureStore, encoder: Encoder
) -> None:
    adapter = on(encoder, pets)
    squashed = replace(adapter, preprocessing={**adapter.preprocessing, "resize_mode": "squash"})
    through = json.loads(json.dumps(squashed.preprocessing))
    found = preprocessing(through, encoder)
    assert found == replace(encoder.preprocess, resize_mode="squash")
    assert preprocessing({}, encoder) == encoder.preprocess
    larger = {**adapter.preprocessing, "size": 64}
    with pytest.raises(UserError, match="makes images of 64 pixels, and the model takes 32"):
        preprocessing(larger, encoder)


def test_probabilities_are_tempered(pets: FeatureStore, encoder: Encoder) -> None:
    plain = replace(on(encoder, pets), tensors={"weight": torch.eye(4, 16), "bias": torch.zeros(4)})
    head = {
        "kind": "linear",
        "fields": {"weight": {"tensor": "weight"}, "bias": None, "measures": {"values": {}}},
    }
    adapter = replace(plain, classifier=head, calibration=Calibration(temperature=0.5))
    predictor = with_encoder(adapter, encoder)
    features = predictor.features(torch.randn(3, 3, 32, 32))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    expected = torch.softmax(2 * features[:, :4].double(), dim=1)
    torch.testing.assert_close(predictor.probabilities(features), expected)


def test_a_wrapped_model_of_the_same_weights_will_do(pets: FeatureStore, encoder: Encoder) -> None:
    again = wrap(encoder.model, encoder.tokenizer, torch.device("cpu"), name="mine", arch="mine")
    require_model(on(encoder, pets).model, again.identity)
