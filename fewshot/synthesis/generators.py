"""The generators by name, and a support set with the features that one makes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.errors import UserError, unknown
from fewshot.model_selection.folds import ALWAYS_TRAINS
from fewshot.settings import with_settings
from fewshot.support import SupportSet
from fewshot.synthesis.adversarial_training import TrainedNetworks, train_tf_vaegan
from fewshot.synthesis.ship import Ship, Synthesizer
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


@dataclass(frozen=True, eq=False)
class Extended:
    """Real and synthesized images together.

    Attributes:
        support: Of all classes: the real images first, then the synthesized ones.
        measures: The last epoch's reconstruction and KL divergence.
    """

    support: SupportSet
    measures: Mapping[str, float]

    def folds(self, real: Tensor) -> Tensor:
        """(N,) fold of each image, given the real ones': what is synthesized judges nothing."""
        made = len(self.support.labels) - len(real)
        return torch.cat([real, torch.full((made,), ALWAYS_TRAINS)])


def extended(
    generator: Generator,
    support: SupportSet,
    text: Tensor,
    seed: int,
    unlabeled: Tensor | None = None,
) -> Extended:
    """Train the generator on the base classes' images, and add features of the new classes.

    Views of a synthesized image are further draws. Where features come as the encoder gave them,
    the synthesized ones have the real ones' mean norm.

    Args:
        generator: The generator.
        support: Images of the base classes, ids 0 to B - 1.
        text: (C, D) texts of the base classes, then the new ones; for a generator that takes them,
            (C, A) attributes.
        seed: Random seed for all of it.
        unlabeled: (U, D) images of new classes, for a generator that learns from them.

    Raises:
        UserError: The training diverged.
    """
    base, n_classes = support.n_classes, len(text)
    made = _trained(generator, support, text, seed, unlabeled)
    labels = torch.arange(base, n_classes).repeat_interleave(generator.images)
    draws = torch.Generator().manual_seed(seed)
    unit = normalize(text, dim=1)
    norm = 1.0 if support.unit_norm else float(support.features.norm(dim=1).mean())

    def more() -> Tensor:
        return norm * made.features(unit, labels, draws)

    features = torch.cat([support.features, more()])
    views = support.views
    if views is not None:
        views = torch.stack([torch.cat([view, more()]) for view in views])
    whole = replace(
        support,
        features=features,
        labels=torch.cat([support.labels, labels]),
        n_classes=n_classes,
        views=views,
    )
    return Extended(whole, {f"{generator.name}_{k}": v for k, v in made.log[-1]._asdict().items()})


def _trained(
    generator: Generator, support: SupportSet, text: Tensor, seed: int, unlabeled: Tensor | None
) -> Synthesizer | TrainedNetworks:
    if isinstance(generator, TfVaegan):
        return train_tf_vaegan(generator, support, text, seed, unlabeled)
    return generator.train(support, text[: support.n_classes], seed)
