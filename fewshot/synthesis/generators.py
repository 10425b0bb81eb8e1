"""The generators by name, and the features that one makes of new classes."""

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError, unknown
from fewshot.settings import with_settings
from fewshot.support import SupportSet
from fewshot.synthesis.adversarial_training import TrainedNetworks, train_tf_vaegan
from fewshot.synthesis.decoded import Decoding
from fewshot.synthesis.ship import Ship, Synthesizer
from fewshot.synthesis.synthesized import Synthesized
from fewshot.synthesis.tf_vaegan import TfVaegan

Generator = Ship | TfVaegan
GENERATORS: Mapping[str, type[Ship] | type[TfVaegan]] = {"ship": Ship, "tf-vaegan": TfVaegan}


def generator_of(words: str) -> Generator:
    """The generator that is described as in `ship` or `ship beta=0.1 images=8`.

    Raises:
        UserError: No such generator, no such setting, or a value that it cannot take.
    """
    name, *pairs = words.split() or [""]
    if name not in GENERATORS:
        raise unknown("generator", name, GENERATORS)
    settings = {}
    for pair in pairs:
        setting, equals, value = pair.partition("=")
        if not (setting and equals and value):
            raise UserError(
                f"a generator's setting must be NAME=VALUE, as in 'ship beta=0.1'; got {pair!r:.60}"
            )
        settings[setting] = value
    return with_settings(GENERATORS[name](), settings, name)


def described(generator: Generator) -> str:
    """The generator in words: its name, and what differs from the defaults, in one order."""
    values = {one.name: (getattr(generator, one.name), one.default) for one in fields(generator)}
    changed = [f"{name}={value}" for name, (value, default) in values.items() if value != default]
    return " ".join([generator.name, *changed])


def synthesize(
    generator: Generator,
    seen: SupportSet,
    text: Tensor,
    seed: int,
    unlabeled: Tensor | None = None,
) -> Synthesized:
    """Train the generator on the base classes' images, and make features of the new classes.

    Args:
        generator: The generator.
        seen: Images of the base classes, ids 0 to B - 1; views of a synthesized image are further
            draws.
        text: (C, D) texts of the base classes, then the new ones; for a generator that takes them,
            (C, A) attributes.
        seed: Random seed for all of it.
        unlabeled: (U, D) images of new classes, for a generator that learns from them.

    Raises:
        UserError: The training diverged.
    """
    made = _trained(generator, seen, text, seed, unlabeled)
    labels = torch.arange(seen.n_classes, len(text)).repeat_interleave(generator.images)
    draws = torch.Generator().manual_seed(seed)
    unit = normalize(text, dim=1)
    times = 1 if seen.views is None else 1 + len(seen.views)
    features = torch.stack([made.features(unit, labels, draws) for _ in range(times)])
    log = tuple(epoch._asdict() for epoch in made.log)
    decoding = None
    if isinstance(made, TrainedNetworks):
        decoding = Decoding(made.scale, made.networks.decoder)
    return Synthesized(generator.name, features, labels, log, decoding)


def _trained(
    generator: Generator, seen: SupportSet, text: Tensor, seed: int, unlabeled: Tensor | None
) -> Synthesizer | TrainedNetworks:
    if isinstance(generator, TfVaegan):
        return train_tf_vaegan(generator, seen, text, seed, unlabeled)
    return generator.train(seen, text[: seen.n_classes], seed)
