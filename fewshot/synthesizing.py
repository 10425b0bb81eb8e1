"""Features of classes without images, made once and kept beside the store for every later fit."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.errors import UserError
from cache.location import pair_names
from cache.store import FeatureStore
from fewshot.few_shots import base_and_new, draw_sample, unit_support
from fewshot.protocol import Protocol
from fewshot.synthesis.from_store import material
from fewshot.synthesis.kept_features import read_kept, write_kept
from fewshot.synthesis.kept_files import Card
from fewshot.synthesis.ship import FeatureDecoder
from fewshot.synthesis.synthesized import Synthesized


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """Features in a file.

    Attributes:
        path: The file.
        card: What it says of itself.
        made: The features, and the log of the training.
        new: False if they were there before.
    """

    path: Path
    card: Card
    made: Synthesized
    new: bool


def require_one_model(name: str | None) -> None:
    """Raise UserError if a model's name is that of a pair."""
    if name is not None and pair_names(name) is not None:
        raise UserError(
            f"{name} is a pair, whose features change with the weight that each method chooses; "
            "name one model"
        )


def synthesize(
    store: FeatureStore | Path | str,
    generator: str = "ship",
    *,
    shots: int = 16,
    seed: int = 1,
    prompt_set: str | None = None,
    decoder: Callable[[], FeatureDecoder] | None = None,
) -> KeptFeatures:
    """Train a generator on the few shots of the base classes, and keep what it makes of the others.

    `fit`, `evaluate` and `bench` with the same generator, shots and seed then read the file and
    train none, whatever the method. The store stays as it is.

    Args:
        store: The features, or the file of them.
        generator: The generator, such as `ship` or `ship beta=0.1 images=8`.
        shots: K, images of each class to draw; those of base classes are learned from.
        seed: Random seed for drawing them, and for training.
        prompt_set: The store's prompt set to make class texts of; None for the dataset's own.
        decoder: For `ship decoder=tower`: makes the decoder with the text tower of the store's
            model, an `endtoend.prompt_decoder.PromptDecoder`, if it comes to training.

    Raises:
        UserError: No such generator, fewer than four classes, too few images of one, no text, a
            training that diverged, a pair of models, or no text tower where one is needed.
    """
    store = FeatureStore.of(store)
    require_one_model(store.model)
    asked = Protocol(
        shots=shots, seed=seed, prompt_set=prompt_set, setting="base-to-new", synthesize=generator
    )
    if shots < 1:
        raise UserError(f"a generator learns from labeled images; got shots {shots}; give some")
    words = str(asked.synthesize)
    base, new = base_and_new(store, asked.setting)
    sample = draw_sample(store, asked)
    seen = unit_support(store.split("train"), sample, base, views=True)
    learned = material(words, store, seen, prompt_set=prompt_set, seed=seed)
    path = learned.path
    if path.exists():
        made, card = read_kept(path)
        return KeptFeatures(path, card, made, new=False)
    start = time.perf_counter()
    made = learned.features(decoder)
    card = Card(
        dataset=store.dataset,
        model=store.model,
        store=store.path.name,
        store_fingerprint=store.fingerprint,
        generator=words,
        shots=shots,
        seed=seed,
        prompt_set=prompt_set or "",
        images=len(seen.labels),
        features=len(made.labels),
        classes=len(new),
        seconds=time.perf_counter() - start,
        fingerprint=learned.fingerprint,
        log=list(made.log[0]),
    )
    write_kept(path, made, card)
    return KeptFeatures(path, card, made, new=True)
