"""Trainings of two shots of colored photos on a small random CLIP."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cache.datasets.source import Item, Source
from cache.extract import extract
from cache.identity import Recipe
from cache.models.encoder import Encoder
from cache.prompts import prompt_sets
from cache.store import FeatureStore
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.experiment import Trained, run
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.coop import CoOp
from fewshot.sampling import draw

COOP = CoOp(n_ctx=2, epochs=3, batch_size=4, lr=0.1)
LORA = CLIPLoRA(iterations_per_shot=4, batch_size=4, lr=3e-2)


def uneven(found: Source) -> Source:
    """Its test labels made partly wrong, and its classes unequal in the test split."""
    test = [
        Item(item.path, 0 if i == 4 else item.label) for i, item in enumerate(found.splits["test"])
    ]
    return replace(found, splits={"train": found.splits["train"], "test": tuple(test[1:])})


def stored(
    source: Source, encoder: Encoder, path: Path, views: int = 0, **more: Any
) -> FeatureStore:
    prompts = prompt_sets(source.classnames, source.templates)
    extract(source, encoder, Recipe(prompts, views=views, **more), path)
    return FeatureStore.open(path)


def trained(
    method: EndToEnd, encoder: Encoder, source: Source, **options: Any
) -> tuple[Trained, list[int]]:
    """Of two shots, with the steps that were taken."""
    steps: list[int] = []
    options = {"watch": lambda step, loss, accuracy, rate: steps.append(step)} | options
    return run(method, encoder, source, **{"shots": 2, "seed": 5, **options}), steps


def equal(one: Trained, other: Trained) -> bool:
    theirs = other.learner.parameters
    return all(torch.equal(value, theirs[name]) for name, value in one.learner.parameters.items())


def sample_of(source: Source) -> list[int]:
    labels = [item.label for item in source.splits["train"]]
    return list(map(int, draw(labels, source.classnames, shots=2, seed=5).train))
