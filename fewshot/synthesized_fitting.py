"""The inputs of a fit, with features that a generator makes of classes without images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cache.errors import UserError
from cache.store import FeatureStore
from fewshot.method import Method
from fewshot.model_selection import tuning
from fewshot.model_selection.blending import blend_of
from fewshot.model_selection.protocols import Share
from fewshot.protocol import Protocol
from fewshot.run import Run
from fewshot.support import SupportSet
from fewshot.synthesis.decoded import Decoding
from fewshot.synthesis.from_store import material
from fewshot.text import NoTextError, Text


@dataclass(frozen=True, eq=False)
class FitInputs:
    """All that a method is tuned on and fitted to.

    Attributes:
        support: The support set, features of new classes included.
        text: The classes' text, or None.
        validation: (M, D) features of the validation images and (M,) their labels, or None.
        share: The method's share of the logits.
        fold: (N,) folds for `cv`; None for those of the support set.
        measures: What was found on the way.
        decoding: Where features of new classes are in a space of their own, the way there.
    """

    support: SupportSet
    text: Text | None
    validation: tuple[Tensor, Tensor] | None
    share: Share
    fold: Tensor | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    decoding: Decoding | None = None


def with_synthesized(
    ready: FitInputs,
    seen: SupportSet,
    store: FeatureStore,
    method: Method,
    protocol: Protocol,
    run: Run,
) -> FitInputs:
    """The same with features of new classes, made by a generator that learns from `seen`."""
    assert protocol.synthesize is not None
    learned = material(
        protocol.synthesize, store, seen, prompt_set=protocol.prompt_set, seed=protocol.seed
    )
    made = learned.features()
    decoding = made.decoding if learned.decodes else None
    text = None if decoding is not None else ready.text
    share, doubt = _share_by_images(store, method, ready.support, text, run.blend)
    fold = made.folds(tuning.cv_folds(ready.support)) if run.tune == "cv" else None
    support, validation = made.beside(ready.support), ready.validation
    if decoding is not None:
        support = decoding.support(support)
        if validation is not None:
            held, truth = validation
            validation = decoding.features(held, unit=method.unit_norm), truth
    measures = {**ready.measures, **doubt, **made.measures}
    return FitInputs(support, text, validation, share, fold, measures, decoding)


@contextmanager
def text_left_out(method: Method, protocol: Protocol) -> Iterator[None]:
    """Say that features beside their attributes have no text, where a method within misses it."""
    try:
        yield
    except NoTextError:
        raise UserError(
            f"{method.name} needs text, and with decoded=true methods learn in a space that has "
            f"none; leave decoded=true out of '{protocol.synthesize}', or use a method that learns "
            "from images alone, such as linear-probe"
        ) from None


def _share_by_images(
    store: FeatureStore, method: Method, support: SupportSet, text: Text | None, share: Share
) -> tuple[Share, dict[str, float]]:
    """The method's share of the logits, and its doubt if any, both by real images alone."""
    base = None if text is None else text.classes(torch.arange(support.n_classes))
    blend = blend_of(method, support, base, logit_scale=store.logit_scale, share=share)
    return (1.0, {}) if blend is None else (blend.share, {"doubt": blend.doubt})
