"""Base and new classes end to end: learned from images of the base classes, tested on each half.

What a method learns of the base classes' names is either carried over to the new names, or, where
features of new classes are synthesized, learned of all names at once, as CoOp with SHIP does (Wang
et al., ICCV 2023, https://arxiv.org/abs/2307.07397): each step adds to the images of its batch as
many features of new classes, drawn uniformly, and the loss is the mean cross-entropy of both.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cache.datasets.source import Source
from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.endtoend.clip import Clip, EndToEnd, Learner, scaled_cosines
from fewshot.endtoend.prompt_decoder import PromptDecoder
from fewshot.endtoend.testing import Queries
from fewshot.few_shots import base_and_new, draw_sample, unit_support
from fewshot.metrics import accuracy
from fewshot.protocol import Protocol
from fewshot.sampling import Rows, restrict
from fewshot.synthesis.from_store import Material, material
from fewshot.synthesis.synthesized import Synthesized


@dataclass(frozen=True, eq=False)
class ClassHalves:
    """The base classes, the new ones, and what is known of the new ones.

    Attributes:
        base: Ids of the classes with images.
        new: Ids of the others.
        unseen: Attached to the new classes' names, with the model that it is part of; None where
            one learner is of all classes.
        learned: What a generator learns from; None without one.
    """

    base: range
    new: range
    unseen: tuple[Learner, Clip] | None
    learned: Material | None

    @classmethod
    def of(
        cls,
        method: EndToEnd,
        encoder: Encoder,
        source: Source,
        learner: Learner,
        protocol: Protocol,
        store: FeatureStore | None,
    ) -> "ClassHalves | None":
        """Return those of a protocol; None where it asks for no halves.

        Args:
            method: The method.
            encoder: The model.
            source: The dataset.
            learner: Attached to the names of the base classes; of all, where features of new ones
                are synthesized.
            protocol: What is asked.
            store: The dataset's features, if there are some.

        Raises:
            UserError: Too few classes, a method that cannot know new ones, or a generator that has
                nothing to learn from.
        """
        if protocol.setting != "base-to-new":
            return None
        base, new = base_and_new(source, protocol.setting)
        if protocol.synthesize is None:
            return cls(base, new, _unseen(method, encoder, source, learner, new), None)
        _require_plain(method, learner)
        return cls(base, new, None, _material(protocol, protocol.synthesize, store, base))

    @property
    def fingerprint(self) -> str | None:
        """That of what the generator learns from; None without one."""
        return None if self.learned is None else self.learned.fingerprint

    def synthesized(self, encoder: Encoder, source: Source) -> Synthesized | None:
        """Features of the new classes: those kept, else of a generator trained now; or None."""
        learned = self.learned
        if learned is None:
            return None

        def decoder() -> PromptDecoder:
            clip = replace(Clip.of(encoder), precision="fp32")
            return PromptDecoder(clip, source.classnames, learned.seed)

        return learned.features(decoder)

    def classify(
        self, learner: Learner, clip: Clip, queries: Queries
    ) -> tuple[Tensor, Rows, dict[str, float]]:
        """(M,) class ids predicted among each half's, (M,) rows of the test split, the accuracies.

        Args:
            learner: What was trained.
            clip: The model that it is part of.
            queries: The images of both halves.
        """
        if self.unseen is not None:
            self.unseen[0].load_state(learner.state())
            halves = [(learner, clip), self.unseen]
        else:
            with torch.no_grad(), clip.autocast():
                text = learner.text()
            halves = [(_among(learner, text, c), clip) for c in (self.base, self.new)]
        labels = np.array([item.label for item in queries.source.splits["test"]])
        predicted, rows, accuracies = [], [], {}
        for name, classes, (half, model) in zip(
            ("base", "new"), (self.base, self.new), halves, strict=True
        ):
            here, truth = restrict(labels, classes)
            found, _ = queries.classify(half, model, rows=here)
            accuracies[name] = accuracy(found, torch.from_numpy(truth))
            predicted.append(found + classes.start)
            rows.append(here)
        return torch.cat(predicted), np.concatenate(rows), accuracies


def beside(learner: Learner, made: Synthesized, size: int) -> Learner:
    """The learner whose loss is the mean of that of images and that of features of new classes.

    Args:
        learner: Of all classes, which compares images and text by cosines.
        made: The features.
        size: How many of them each step draws.
    """
    pool, labels = made.features.flatten(0, 1), made.labels.repeat(len(made.features))

    def penalty(text: Tensor) -> Tensor:
        rows = torch.randint(len(labels), (size,))
        logits = scaled_cosines(learner.logit_scale, pool[rows].to(text.device), text)
        loss = cross_entropy(logits, labels[rows].to(text.device)) / 2
        return loss if learner.penalty is None else loss + learner.penalty(text)

    def objective(features: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        return cross_entropy(logits, labels) / 2

    return replace(learner, penalty=penalty, objective=objective)


def _unseen(
    method: EndToEnd, encoder: Encoder, source: Source, learner: Learner, new: range
) -> tuple[Learner, Clip]:
    """Attached to the new classes' names, for parameters that are to come from the learner.

    Raises:
        UserError: The number of parameters depends on the classes.
    """
    every = method.attach(Clip.of(encoder), source.classnames, source.templates)
    if _shapes(every) != _shapes(learner):
        raise UserError(
            f"{method.name} as it is set learns something for each class, so it knows no classes "
            "but those it has images of; leave base-to-new out, or use coop or clip-lora"
        )
    clip = Clip.of(encoder)
    return method.attach(clip, [source.classnames[k] for k in new], source.templates), clip


def _shapes(learner: Learner) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in learner.state().items()}


def _require_plain(method: EndToEnd, learner: Learner) -> None:
    """Raise unless the method can learn from synthesized features beside images.

    Raises:
        UserError: It moves the image tower, or compares images and text in a way of its own.
    """
    own = (learner.images, learner.compare, learner.score, learner.objective, learner.search)
    if any(way is not None for way in (*own, learner.refine)):
        raise UserError(
            f"{method.name} does not learn from synthesized features; leave synthesize out, or use "
            "coop or kgcoop"
        )


def _material(protocol: Protocol, words: str, store: FeatureStore | None, base: range) -> Material:
    """The material that the generator learns from.

    Raises:
        UserError: There is no store, or the generator's features are not in the space of text.
    """
    if store is None:
        raise UserError(
            f"{words} learns from stored features, and there are none of this dataset and model; "
            "run fewshot extract first, and leave --live out"
        )
    sample = draw_sample(store, protocol)
    seen = unit_support(store.split("train"), sample, base, views=protocol.views)
    learned = material(words, store, seen, prompt_set=None, seed=protocol.seed)
    if learned.decodes:
        raise UserError(
            "with decoded=true methods learn in a space that has no text, and prompts are text; "
            f"leave it out of '{words}'"
        )
    return learned


def _among(learner: Learner, text: Tensor, classes: range) -> Learner:
    """The learner of some of its classes, given the text of all."""
    return replace(learner, text=lambda: text[classes.start : classes.stop])
