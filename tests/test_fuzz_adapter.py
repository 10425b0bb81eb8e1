"""Damaged and mutated adapters: refused in one line, and nothing that changes an answer is taken.

FUZZ=3000 tries so many of each kind.
"""

import contextlib
import copy
import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load as load_encoder
from fewshot.adapters.adapter import load_adapter
from fewshot.adapters.description import describe
from fewshot.adapters.opened_adapter import with_encoder
from tests.toy_adapters import fitted_adapter, trained_adapter

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]  # torch warns of odd shapes

INPUTS = int(os.environ.get("FUZZ", "200"))
METHODS = ("gda", "tip-x", "ape", "transclip", "clip-lora")
WRONG: list[Any] = [
    None, True, 0, -1, 2, 10**12, 0.5, float("nan"), float("inf"), "", "x", "\x00", [], [1], ["a"],
    {}, {"a": 1}, [[]], [None], "0" * 70,
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("tiny", device="cpu")


@pytest.fixture(scope="module", params=METHODS)
def content(
    request: pytest.FixtureRequest, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    if request.param == "clip-lora":
        own = replace(encoder, model=copy.deepcopy(encoder.model))
        trained_adapter(own, "clip-lora").save(path)
    else:
        fitted_adapter(encoder, request.param).save(path)
    return path.read_bytes()


def card_of(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    card: dict[str, Any] = json.loads(header["__metadata__"]["fewshot"])
    return card


def sealed(card: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """A file with the digest of its own bytes, so that only its form can be wrong."""
    whole = save(tensors, {"fewshot": json.dumps({**card, "digest": "0" * 64})})
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def accepted(content: bytes, path: Path, encoder: Encoder) -> bool:
    """True if the file is read, shown and classifies; False if a user error says no."""
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        adapter = load_adapter(path)
        assert describe(adapter)
        if adapter.classifier is None:
            encoder = replace(encoder, model=copy.deepcopy(encoder.model))  # the method changes it
        predictor = with_encoder(adapter, encoder)
        predictor.probabilities(predictor.features(torch.zeros(2, 3, 32, 32)))
        return True
    return False


def test_no_flipped_bit_is_accepted(content: bytes, tmp_path: Path, encoder: Encoder) -> None:
    rng = random.Random(1)
    assert accepted(content, tmp_path / "a.safetensors", encoder)
    header = 8 + int.from_bytes(content[:8], "little")
    for i in range(INPUTS):
        bit = rng.randrange(8 * (header if i % 2 else len(content)))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not accepted(bytes(flipped), tmp_path / "a.safetensors", encoder), bit


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if not isinstance(value, dict | list):
        return
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield from places(inner, (*at, key))


def mutated(card: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The card with one entry removed, added or replaced."""
    card = copy.deepcopy(card)
    every = list(places(card))
    top = rng.choice([at for at in every if len(at) == 1])
    *parents, last = rng.choice([at for at in every if at[0] == top[0]])
    inner: Any = card
    for key in parents:
        inner = inner[key]
    match rng.choice(("remove", "add", "replace", "replace")):
        case "remove":
            del inner[last]
        case "add" if isinstance(inner, dict):
            inner[rng.choice(("x", "fields", "kind", "tensor", ""))] = rng.choice(WRONG)
        case "add":
            inner.append(rng.choice(WRONG))
        case _:
            inner[last] = rng.choice(WRONG)
    return card


def test_a_card_that_was_changed_gives_one_line_or_an_answer(
    content: bytes, tmp_path: Path, encoder: Encoder
) -> None:
    rng = random.Random(2)
    card, tensors = card_of(content), load(content)
    assert accepted(sealed(card, tensors), tmp_path / "a.safetensors", encoder)
    inputs = [sealed(mutated(card, rng), tensors) for _ in range(INPUTS // 4)]
    outcomes = [accepted(one, tmp_path / "a.safetensors", encoder) for one in inputs]
    assert outcomes.count(False) > len(outcomes) / 2


def other_tensor(tensor: Tensor, rng: random.Random) -> Tensor:
    match rng.randrange(6):
        case 0:
            return tensor[:-1] if tensor.ndim else tensor.repeat(2)
        case 1:
            return tensor[None]
        case 2:
            return tensor.to(rng.choice((torch.float64, torch.int64, torch.float16, torch.bool)))
        case 3:
            return torch.zeros(0)
        case 4:
            return tensor.t() if tensor.ndim == 2 else tensor[..., None]
        case _:
            return torch.full_like(tensor, 10**4)


def test_tensors_that_were_changed_give_one_line_or_an_answer(
    content: bytes, tmp_path: Path, encoder: Encoder
) -> None:
    rng = random.Random(3)
    card, tensors = card_of(content), load(content)
    for _ in range(INPUTS // 4):
        name = rng.choice(sorted(tensors))
        other = {**tensors, name: other_tensor(tensors[name], rng).contiguous()}
        if rng.random() < 0.2:
            other[f"{name}x"] = other.pop(name)
        accepted(sealed(card, other), tmp_path / "a.safetensors", encoder)
