from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot import configure, evaluate, fit
from fewshot.few_shots import base_and_new, draw_sample, unit_support
from fewshot.protocol import Protocol
from fewshot.sampling import restrict
from fewshot.support import SupportSet
from fewshot.synthesis.decoded import Decoding
from fewshot.synthesis.from_store import material
from fewshot.synthesizing import synthesize
from tests.small_stores import write_store

GAN = "tf-vaegan images=2 latent=2 hidden=4 epochs=1 critic_steps=1"
DECODED = f"{GAN} decoded=True"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    names = ("ant", "bee", "cat", "dog", "elk", "fox")
    return FeatureStore.open(write_store(tmp_path, "six", names=names, n_views=2))


def decoding_of(store: FeatureStore) -> Decoding:
    found = synthesize(store, GAN, shots=3).made.decoding
    assert found is not None
    return found


def written_out(decoding: Decoding, features: Tensor) -> np.ndarray[Any, Any]:
    """[x, a, h] of each feature, one number after another."""
    low, width = decoding.scale.low.numpy(), decoding.scale.width.numpy()
    d = {name: t.double().numpy() for name, t in decoding.decoder.state_dict().items()}
    rows = []
    for f in features.double().numpy():
        x = (f / np.sqrt((f * f).sum()) - low) / width
        h = d["first.weight"] @ x + d["first.bias"]
        h = np.array([v if v > 0 else 0.2 * v for v in h])
        a = d["second.weight"] @ h + d["second.bias"]
        rows.append(np.concatenate([x, a / np.sqrt((a * a).sum()), h]))
    return np.array(rows)


def test_a_feature_stands_beside_its_attributes_and_the_hidden_layer(store: FeatureStore) -> None:
    decoding, test = decoding_of(store), torch.from_numpy(store.features("test"))
    expected = written_out(decoding, test)
    got = decoding.features(7 * test, unit=False)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(decoding.features(test, unit=True), normalize(got))


@pytest.mark.parametrize("name", ["ridge", "linear-probe"])
def test_the_method_learns_decoded_images_real_and_synthesized(
    store: FeatureStore, name: str
) -> None:
    asked: dict[str, Any] = {"shots": 3, "setting": "generalized", "tune": "none"}
    fitted = fit(store, name, synthesize=DECODED, **asked)
    base, _ = base_and_new(store, "generalized")
    method = configure(name, logit_scale=store.logit_scale)
    drawn = draw_sample(store, Protocol(shots=3, setting="generalized"))
    train, unit = store.split("train"), method.unit_norm
    kept, labels = restrict(train.labels[drawn.train], base)
    rows = drawn.train[kept]
    real = SupportSet(
        torch.from_numpy(train.features(rows, unit=unit)),
        torch.from_numpy(labels),
        len(base),
        torch.from_numpy(train.views(rows, unit=unit)),
        unit_norm=unit,
    )
    seen = unit_support(train, drawn, base, views=True)
    made = material(GAN, store, seen, prompt_set=None, seed=1).features()
    assert made.decoding is not None
    both = made.beside(real)
    support = made.decoding.support(both)
    test = torch.from_numpy(store.features("test"))
    inner = method.fit(support, None)
    expected = inner.logits(made.decoding.features(test, unit=unit))
    torch.testing.assert_close(fitted.classifier.logits(test), expected)
    result = evaluate(store, name, synthesize=DECODED, **asked)
    assert result.synthesized == DECODED
    assert f"with {DECODED}" in result.label


def test_what_is_kept_serves_with_and_without_decoding(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"shots": 3, "setting": "base-to-new", "tune": "val"}
    before = [evaluate(store, "ridge", synthesize=g, **asked) for g in (GAN, DECODED)]
    assert synthesize(store, GAN, shots=3).path == synthesize(store, DECODED, shots=3).path
    monkeypatch.setattr("fewshot.synthesis.from_store.synthesize", None)
    after = [evaluate(store, "ridge", synthesize=g, **asked) for g in (GAN, DECODED)]
    assert [r.accuracies for r in after] == [r.accuracies for r in before]
    assert before[0].run != before[1].run


def test_methods_that_need_text_are_refused(store: FeatureStore) -> None:
    with pytest.raises(UserError, match=r"clap needs text, .* leave decoded=true out of"):
        evaluate(store, "clap", shots=2, setting="generalized", synthesize=DECODED, tune="none")
