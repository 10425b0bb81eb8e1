"""Two techniques in one model: both act, whichever came first, or the second is refused."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache.errors import UserError
from cache.models.loading import load
from fewshot.endtoend.attention import fuse
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import METHODS, configure
from fewshot.endtoend.parts import peft
from fewshot.endtoend.parts.peft import PEFTMethod
from fewshot.endtoend.parts.weight_delta import OnMatrices, fold

NAMES = ["cat", "long_haired dog", "zebra"]
LABELS = torch.tensor([0, 1, 2, 1])
SETTINGS: dict[str, dict[str, str]] = {
    "clip-lora": {"towers": "image", "dropout": "0"},
    "ssf": {},
    "repadapter": {"dim": "4", "dropout": "0"},
    "bitfit": {},
    "ln-tune": {},
    "difffit": {},
    "full-fine-tuning": {},
    "adaptformer": {"dim": "4", "dropout": "0"},
    "convpass": {"dropout": "0"},
    "sct": {"channels": "8"},
    "patt": {"dim": "4"},
    "prefix": {"n_tokens": "2"},
    "vpt-deep": {"n_tokens": "2"},
    "lst": {},
    "vqt": {"dropout": "0"},
    "visual-prompt": {},
    "side-tuning": {"channels": "4"},
}
ALIKE = {  # go into the towers by the same function as the technique they stand beside here
    "krona": "clip-lora", "efft": "clip-lora", "kadaptation": "clip-lora", "fact": "clip-lora",
    "full-delta": "clip-lora", "houlsby-adapter": "adaptformer", "adapterbias": "adaptformer",
    "dp-bitfit": "bitfit", "lion": "side-tuning",
    "inner-clip-adapter": "adaptformer", "lorand": "adaptformer", "u-tuning": "adaptformer",
    "evp": "visual-prompt", "ett": "prefix", "vpt-shallow": "vpt-deep", "dtl": "lst",
}  # fmt: skip
ALONE = {
    "2sfs", "live-linear-probe",  # train the classifier too, and one learner has one of it
    "composition",  # composes by itself
}  # fmt: skip
WEIGHTS = [
    "clip-lora", "ssf", "repadapter", "bitfit", "ln-tune", "difffit",
    "full-fine-tuning",
]  # fmt: skip
PIXELS = {"visual-prompt", "side-tuning"}  # outside of the tower
OTHER_FUNCTION = {"prefix", "vpt-deep", *PIXELS}  # than CLIP's
REFUSED = {  # the second, in one line
    ("clip-lora", "clip-lora"),  # the same matrices
    ("repadapter", "repadapter"), ("ssf", "repadapter"),
    ("ssf", "clip-lora"), ("ssf", "difffit"),
    *((first, "ssf") for first in SETTINGS if first not in PIXELS),  # it scales CLIP's own
    *((name, name) for name in ("bitfit", "ln-tune", "difffit")),  # nothing is left
    *product(("bitfit", "ln-tune"), ("difffit",)), *product(("difffit",), ("bitfit", "ln-tune")),
    *(("full-fine-tuning", second) for second in ("bitfit", "ln-tune", "difffit")),
    ("full-fine-tuning", "full-fine-tuning"),
    ("patt", "clip-lora"), ("prefix", "clip-lora"),  # keys and values are from no matrix now
    ("prefix", "patt"),
    *product(("adaptformer", "convpass", "sct"), repeat=2),
    *product(("vpt-deep", "lst", "vqt"), repeat=2),
    *(("vqt", second) for second in SETTINGS),
}  # fmt: skip

BY_ORDER = {  # what a technique does depends on what is there by then
    *product(PIXELS, repeat=2),  # the last one put in sees the pixels first
    *product(SETTINGS, ("sct",)), *product(("sct",), SETTINGS),  # it measures activity first
    ("bitfit", "ln-tune"), ("ln-tune", "bitfit"),  # the first has the norms' offsets
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(random_vit: Path) -> Iterator[Clip]:
    with pytest.MonkeyPatch.context() as patched:  # the text tower takes half of the time
        text = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        patched.setattr(peft, "class_text", lambda *args: text.clone())
        yield Clip.of(load(f"local-dir:{random_vit}", device="cpu"))


def pixels() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def fresh(clip: Clip) -> Clip:
    """A copy with an image tower of its own; the text tower is but looked at here."""
    text = (clip.model.transformer, clip.model.token_embedding)
    return replace(clip, model=copy.deepcopy(clip.model, {id(part): part for part in text}))


def attached(name: str, clip: Clip) -> Any:
    learner: Any = configure(name, SETTINGS[name], seed=1).attach(clip, NAMES, ["a {}."])
    if learner.calibrate is not None:
        learner.calibrate([pixels()], LABELS)
    return learner


def move(learner: Any, seed: int) -> None:
    """All that is trained off its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def set_to(learner: Any, other: Any) -> None:
    """The same values; the same parameter has a longer name where it lies inside of an update."""
    for ours, theirs in zip(learner.parameters.values(), other.parameters.values(), strict=True):
        ours.copy_(theirs)


@torch.no_grad()
def features(clip: Clip) -> Tensor:
    encoded: Tensor = clip.model.encode_image(pixels())
    return encoded


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), sorted(set(product(SETTINGS, repeat=2)) - REFUSED))
def test_two_techniques_both_act_and_learn_whichever_came_first(
    clip: Clip, first: str, second: str
) -> None:
    model = fresh(clip)
    one = attached(first, model)
    move(one, 1)
    alone = features(model)
    two = attached(second, model)
    if second not in OTHER_FUNCTION:
        assert_equal(features(model), alone)
    move(two, 2)
    encoded = two.images(pixels())
    (two.logits(encoded) * pixels()[:, 0, 0, :3]).sum().backward()
    trained = [*one.parameters.items(), *two.parameters.items()]
    for name, parameter in trained:
        assert parameter.grad is not None, name
        # A key's bias adds the same to every logit of its query, which softmax does not see.
        assert parameter.grad.any() or "k_proj" in name, name
    declared = {id(parameter) for _, parameter in trained}
    assert len(declared) == len(trained)
    assert all(p.requires_grad == (id(p) in declared) for p in model.model.parameters())
    if first < second and (second, first) not in REFUSED | BY_ORDER:
        other = fresh(clip)
        earlier, later = attached(second, other), attached(first, other)
        set_to(earlier, two)
        set_to(later, one)
        assert_equal(later.images(pixels()) if first == "vqt" else features(other), features(model))


@pytest.mark.parametrize("first", SETTINGS)
def test_a_second_technique_that_finds_no_place_is_refused(clip: Clip, first: str) -> None:
    model = fresh(clip)
    attached(first, model)
    for second in sorted(second for one, second in REFUSED if one == first):
        with pytest.raises(UserError, match="attach"):
            attached(second, model)


def test_every_technique_is_among_those_or_goes_into_the_towers_as_one_of_them() -> None:
    techniques = {name for name, method in METHODS.items() if issubclass(method, PEFTMethod)}
    assert techniques == SETTINGS.keys() | ALIKE.keys() | ALONE
    for name, other in ALIKE.items():
        assert issubclass(METHODS[name], OnMatrices) == issubclass(METHODS[other], OnMatrices)


@pytest.mark.parametrize(
    ("weights", "second"),
    sorted(set(product(("clip-lora", "ssf"), SETTINGS.keys() - set(WEIGHTS))) - REFUSED),
)
def test_an_update_of_weights_and_another_technique_are_that_technique_on_other_weights(
    clip: Clip, weights: str, second: str
) -> None:
    model, folded = fresh(clip), fresh(clip)
    for each in (model, folded):
        move(attached(weights, each), 1)
    fold(folded.model)
    learners = [attached(second, each) for each in (model, folded)]
    for learner in learners:
        move(learner, 2)
    assert_equal(*(learner.images(pixels()).detach() for learner in learners))


@pytest.mark.parametrize(("first", "second"), sorted(set(product(WEIGHTS, repeat=2)) - REFUSED))
def test_two_updates_of_weights_fold_together(clip: Clip, first: str, second: str) -> None:
    model = fresh(clip)
    move(attached(first, model), 1)
    move(attached(second, model), 2)
    before = features(model)
    fold(model.model)
    fuse(model.model.visual)
    assert_equal(features(model), before)
