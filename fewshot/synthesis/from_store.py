"""The parts of a store that a generator learns from: images, text or attributes."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.files.json_text import canonical_json
from cache.store import FeatureStore
from fewshot.support import SupportSet
from fewshot.synthesis.generators import Generator, described, generator_of, synthesize
from fewshot.synthesis.kept_features import read_kept
from fewshot.synthesis.kept_files import kept_path
from fewshot.synthesis.ship import FeatureDecoder, Ship
from fewshot.synthesis.synthesized import Synthesized
from fewshot.synthesis.tf_vaegan import TfVaegan


@dataclass(frozen=True, eq=False)
class Material:
    """All that a generator learns from.

    Attributes:
        generator: The generator.
        seen: Images of the base classes at unit norm.
        text: (C, D) texts of all classes, or (C, A) their attributes.
        seed: Random seed for training and drawing.
        unlabeled: (U, D) images of new classes, for a generator that learns from them.
        store: The file that all of it is from.
    """

    generator: Generator
    seen: SupportSet
    text: Tensor
    seed: int
    unlabeled: Tensor | None
    store: Path

    @property
    def fingerprint(self) -> str:
        """64 hex digits that differ for whatever makes other features."""
        settings = {**asdict(self.generator), "generator": self.generator.name, "seed": self.seed}
        settings.pop("decoded", None)  # it is about what is learned from the features
        if settings.get("decoder") == "text":  # unsaid before there was another
            settings.pop("decoder")
        digest = hashlib.sha256(canonical_json(settings).encode())
        seen = self.seen
        for given in (seen.features, seen.labels, seen.views, self.text, self.unlabeled):
            shape = None if given is None else list(given.shape)
            digest.update(canonical_json(shape).encode())
            digest.update(b"" if given is None else given.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def decodes(self) -> bool:
        """True if methods learn from features beside their decoded attributes."""
        return isinstance(self.generator, TfVaegan) and self.generator.decoded

    @property
    def path(self) -> Path:
        """Where the features are kept, if they are."""
        return kept_path(self.store, self.generator.name, self.fingerprint)

    @property
    def needs_tower(self) -> bool:
        """True if a decoder with a text tower is needed for training."""
        return isinstance(self.generator, Ship) and self.generator.decoder == "tower"

    def features(self, decoder: Callable[[], FeatureDecoder] | None = None) -> Synthesized:
        """The features: those that are kept, else of a generator that is trained for it.

        Args:
            decoder: Makes that of SHIP with a text tower, which no store has.

        Raises:
            UserError: The training diverged, the file of those kept is damaged, or there is neither
                that file nor a text tower.
        """
        path = self.path
        if path.exists():
            return read_kept(path)[0]
        if self.needs_tower and decoder is None:
            words = described(self.generator)
            raise UserError(
                f"{words} reads prompts, for which a store has no text tower, and no features of "
                f"these shots are kept; make them first: fewshot synthesize --generator '{words}' "
                f"--shots {self.seen.shots} --seed {self.seed}, with the same --dataset and --model"
            )
        made = decoder() if self.needs_tower and decoder is not None else None
        return synthesize(self.generator, self.seen, self.text, self.seed, self.unlabeled, made)


def material(
    words: str, store: FeatureStore, seen: SupportSet, *, prompt_set: str | None, seed: int
) -> Material:
    """The parts of a store that a generator learns from.

    Args:
        words: The generator, as in `generators.generator_of`.
        store: Has the text or the attributes of all classes.
        seen: Images of the base classes at unit norm.
        prompt_set: The set of prompts to make class texts of; None for the dataset's own.
        seed: Random seed for training and drawing.

    Raises:
        UserError: What `generator_of` raises, or no text.
    """
    generator = generator_of(words)
    if lacks_text(store, words):
        raise UserError(
            f"{store.path} has no text, and {words} makes features of class texts; "
            "extract or import it with text"
        )
    unlabeled, attributes = None, None
    if isinstance(generator, TfVaegan):
        unlabeled = unlabeled_images(store, range(seen.n_classes, store.n_classes))
        attributes = store.attributes
    if attributes is None:
        attributes = store.text("unit-mean", prompt_set)
    text = torch.from_numpy(attributes)
    return Material(generator, seen, text, seed, unlabeled, store.path)


def lacks_text(store: FeatureStore, words: str) -> bool:
    """True if the store has nothing that the generator could make features of."""
    by_attributes = isinstance(generator_of(words), TfVaegan) and store.attributes is not None
    return not (store.text_sets or by_attributes)


def unlabeled_images(store: FeatureStore, classes: range) -> Tensor:
    """(U, D) train images of these classes at unit norm, which is all that their labels are for."""
    train = store.split("train")
    rows = train.encoded[np.isin(train.labels[train.encoded], classes)]
    return torch.from_numpy(train.features(rows))
