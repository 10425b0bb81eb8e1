import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from cli import main
from fewshot import base_to_new
from fewshot.commands import synthesize_command
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.prompt_decoder import PromptDecoder
from fewshot.support import SupportSet
from fewshot.synthesis.kept_files import Card, find_kept
from fewshot.synthesis.ship import Ship
from tests.naive_prompts import text_around
from tests.toys import vectors

NAMES = ("ant", "honey bee", "cat")
TOWER = "ship decoder=tower images=2 latent=2 hidden=4 epochs=2"


def test_a_feature_is_that_of_the_prompt_with_every_word_of_the_context_shifted(
    encoder: Encoder,
) -> None:
    decoder = PromptDecoder(Clip.of(encoder), NAMES, seed=1)
    labels, shifts = torch.tensor([1, 0, 1]), vectors(0, 3, decoder.width).requires_grad_()
    contexts = [decoder.context + shift for shift in shifts]
    names = [[NAMES[label]] for label in labels.tolist()]
    expected = torch.cat([text_around(encoder, *one) for one in zip(contexts, names, strict=True)])
    found = decoder(labels, shifts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for got, wanted in zip(
        *(torch.autograd.grad(x[:, 0].sum(), (shifts, decoder.context)) for x in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_training_moves_the_context_and_leaves_the_tower(encoder: Encoder) -> None:
    clip = Clip.of(encoder)
    weights = copy.deepcopy(clip.model.state_dict())
    decoder = PromptDecoder(clip, NAMES, seed=1)
    before = decoder.context.detach().clone()
    support = SupportSet(normalize(vectors(0, 4, 16)), torch.tensor([0, 0, 1, 1]), 2)
    made = Ship(latent=2, hidden=4, epochs=3, lr=0.1).train(support, decoder, seed=1)
    assert not torch.equal(decoder.context, before)
    assert made.log[-1].reconstruction < made.log[0].reconstruction
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    features = made.features(torch.tensor([2, 2]), torch.Generator().manual_seed(1))
    z = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = decoder(torch.tensor([2, 2]), made.autoencoder.generator(z))
    torch.testing.assert_close(features, expected)


@pytest.fixture
def store(draw_photos: Callable[..., Path], random_vit: Path, tmp_path: Path) -> FeatureStore:
    """Features of photos of four colors, three to train on."""
    photos = draw_photos(6, ("blue", "green", "red", "white"))
    model = f"local-dir:{random_vit}"
    command = ["extract", "--dataset", str(photos), "--model", model]
    assert main([*command, "--store", str(tmp_path / "stores")]) == 0
    return FeatureStore.open(next(tmp_path.glob("stores/*/*.h5")))


def test_the_command_makes_features_of_prompts_and_says_so(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"a store has no text tower, .* make them first: fewshot"):
        base_to_new(store, "ridge", shots=2, synthesize=TOWER)
    root = store.path.parents[1]
    asked = ["synthesize", "--store", str(root), "--shots", "2", "--generator"]
    capsys.readouterr()
    assert main([*asked, TOWER.replace("decoder=tower ", "")]) == 0
    [path] = find_kept(root)
    assert Card.of(path).generator == TOWER
    err = capsys.readouterr().err
    assert f"by {TOWER}" in err
    assert "made of prompts, by the text tower of local-dir:" in err
    assert f"--synthesize '{TOWER}'" in err
    result = base_to_new(store, "ridge", shots=2, synthesize=TOWER)
    assert result.run.synthesized == TOWER
    assert main([*asked, f"{TOWER} decoder=text"]) == 0
    assert {Card.of(path).generator for path in find_kept(root)} == {
        TOWER, TOWER.replace("decoder=tower ", "")
    }  # fmt: skip


def test_without_the_models_tower_features_are_of_class_texts_unless_it_is_asked_for(
    store: FeatureStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store.path.parents[1]
    asked = ["synthesize", "--store", str(root), "--shots", "2", "--generator"]
    imported = replace(store, imported=True)
    monkeypatch.setattr(synthesize_command, "chosen_store", lambda *_: imported)
    capsys.readouterr()
    assert main([*asked, TOWER]) == 2
    assert "was imported, so the weights behind it are not known" in capsys.readouterr().err
    assert main([*asked, TOWER.replace("decoder=tower ", "")]) == 0
    err = capsys.readouterr().err
    assert "features are made of class texts, not of prompts: " in err
    assert "made of class texts, by no text tower" in err
    [path] = find_kept(root)
    assert "tower" not in Card.of(path).generator
