"""The generators by name, and the features that one makes of new classes."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError, unknown
from cache.progress import progress
from fewshot.settings import with_settings
from fewshot.support import SupportSet
from fewshot.synthesis.adversarial_training import AdversarialEpoch, train_tf_vaegan
from fewshot.synthesis.decoded import Decoding
from fewshot.synthesis.ship import ClassTexts, Epoch, FeatureDecoder, Ship
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
    decoder: FeatureDecoder | None = None,
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
        decoder: For SHIP with a text tower: its decoder, of the same classes.

    Raises:
        UserError: The training diverged.
    """
    labels = torch.arange(seen.n_classes, len(text)).repeat_interleave(generator.images)
    decoding = None
    log: tuple[Epoch | AdversarialEpoch, ...]
    draw: Callable[[Tensor, torch.Generator], Tensor]
    if isinstance(generator, TfVaegan):
        networks = train_tf_vaegan(generator, seen, text, seed, unlabeled)
        log, decoding = networks.log, Decoding(networks.scale, networks.networks.decoder)
        draw = partial(networks.features, normalize(text, dim=1))
    else:
        made = generator.train(seen, decoder or ClassTexts(text), seed)
        log, draw = made.log, made.features
    draws = torch.Generator().manual_seed(seed)
    times = 1 if seen.views is None else 1 + len(seen.views)
    features = []
    with progress(f"{generator.name}: drawing", times, patience=2.0) as advance:
        for _ in range(times):
            features.append(draw(labels, draws))
            advance(1)
    kept = tuple(epoch._asdict() for epoch in log)
    return Synthesized(generator.name, torch.stack(features), labels, kept, decoding)
