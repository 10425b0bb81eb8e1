"""A method fitted to a store's few shots: drawn, tuned and fitted, the test split never read."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from cache.errors import UserError
from cache.pair import EVEN, Pair
from cache.split import Split
from cache.store import FeatureStore
from fewshot.few_shots import draw_sample, unit_support
from fewshot.fitted import Fitted
from fewshot.method import Method
from fewshot.model_selection import tuning
from fewshot.model_selection.blending import blend_of
from fewshot.model_selection.protocols import Share
from fewshot.open_set import checked_known, known_classes
from fewshot.pair_weight import weighed
from fewshot.protocol import OFFICIAL, Asked, Protocol
from fewshot.published_recipe import PublishedRecipe
from fewshot.sampling import Sample, halves, restrict
from fewshot.settling import require_labels, run_on, settled
from fewshot.store_features import class_text, query, support_set
from fewshot.support import SupportSet
from fewshot.synthesis.decoded import Decoding
from fewshot.synthesis.from_store import material
from fewshot.text import NoTextError, Text
from fewshot.threads import few_threads
from fewshot.unlabeled_fitting import fit_unlabeled

Labeled = tuple[Tensor, Tensor]  # features (M, D) float32 and labels (M,)


def fit(
    store: FeatureStore | Path | str,
    method: Method | str,
    protocol: Protocol | None = None,
    *,
    classes: Sequence[int] | None = None,
    images: Tensor | None = None,
    **asked: Unpack[Asked],
) -> Fitted:
    """Draw the few shots, tune on them, and fit: `fit(store, "gda", shots=4, seed=1)`.

    For methods that use no labels, shots and seed are recorded as 0. Of a pair, the weight is
    chosen first, on the same few shots; see `pair_weight.weighed`.

    Args:
        store: The features, or the file of them.
        method: A method with the hyper-parameters that tuning starts from, whose logit scale is
            used as it is; or a method's name, which takes the store's logit scale.
        protocol: What is asked; the default `Protocol()` without it.
        classes: The ids of the classes to learn, in ascending order, cut out of the sample of all;
            without it the known ones of an open set, else all. Where features of new classes are
            synthesized, they are the base classes, and the classifier is of all.
        images: (U, D) features for a method that learns from unlabeled images; the train images
            without it.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own. `fixed` may
            also be the names of the method's fields that keep their values.

    Raises:
        UserError: What `Protocol` raises; too few images of a class, a protocol that needs a val
            split where there is none, a method that needs text where there is none, or what the
            store itself objects to.
    """
    store = FeatureStore.of(store)
    if isinstance(store, Pair) and store.weight is None:
        store = _weighed(store, method, protocol, classes, images, asked)
    method, protocol = settled(store, method, protocol, asked)
    classes = _classes(store, protocol) if classes is None else classes
    tune, recipe = protocol.tune, None
    if protocol.tune == OFFICIAL:
        recipe = _recipe(store, method)
        method, tune = replace(method, **recipe.settings), recipe.tune
    if tune in ("val", "full-val") and "val" not in store.splits:
        raise UserError(
            f"{store.dataset} has no val split for tuning by {tune}, and the test split "
            "is not for tuning; use cv or none"
        )
    named = classes
    if protocol.synthesize is not None:
        require_labels(method, protocol.synthesize)
        named = range(store.n_classes)
    text = class_text(store, method, protocol.prompt_set, named)
    if not protocol.support_for(method):
        return fit_unlabeled(store, method, protocol, text, classes, images)
    train = store.split("train")
    val = store.split("val") if tune in ("val", "full-val") else None
    drawn_val = val.labels if val is not None and tune == "val" else None
    sample = draw_sample(store, protocol, drawn_val)
    views = protocol.views if recipe is None else recipe.views > 0
    support = _support(train, method, sample, classes, views)
    run = run_on(store, method, protocol, sample.shots, support.shots, support.n_views)
    validation = None
    if val is not None and tune is not None and run.tune != "none":
        validation = _validation(val, method, sample, tune, classes)
    if "seed" in {field.name for field in fields(method)} - set(protocol.fixed):
        method = replace(method, seed=run.seed)
    grid = {name: values for name, values in method.grid.items() if name not in protocol.fixed}
    start = time.perf_counter()
    share, fold = run.blend, None
    measures = {"pair_weight": store.share} if isinstance(store, Pair) else {}
    n_images = len(support.labels)
    decoding: Decoding | None = None
    if protocol.synthesize is not None:
        seen = support
        if not support.unit_norm:  # a generator learns of the same features whatever the method
            seen = unit_support(train, sample, classes, views=views)
        learned = material(
            protocol.synthesize, store, seen, prompt_set=protocol.prompt_set, seed=protocol.seed
        )
        made = learned.features()
        if learned.decodes:
            decoding, text = made.decoding, None
        share, doubt = _share_by_images(store, method, support, text, run.blend)
        fold = made.folds(tuning.cv_folds(support)) if run.tune == "cv" else None
        support, measures = made.beside(support), {**measures, **doubt, **made.measures}
    if decoding is not None:
        support = decoding.support(support)
        if validation is not None:
            held, truth = validation
            validation = decoding.features(held, unit=method.unit_norm), truth
    if recipe is None:
        with nullcontext() if decoding is None else _text_left_out(method, protocol):
            method, classifier = tuning.fit_tuned(
                method, support, text,
                protocol=run.tune, logit_scale=store.logit_scale, share=share,
                validation=validation, grid=grid, fold=fold,
            )  # fmt: skip
    else:
        with few_threads(support):
            if validation is not None:
                method = method.search_published(recipe.grid, support, text, *validation)
            classifier = method.fit(support, text)
    if decoding is not None:
        classifier = decoding.classifier(classifier, unit=method.unit_norm)
    return Fitted(
        run=run,
        store=store,
        method=method,
        classifier=classifier,
        support=support,
        text=text,
        n_images=n_images,
        n_validation=len(validation[1]) if validation else 0,
        seconds=time.perf_counter() - start,
        measures=measures,
    )


def _weighed(
    pair: Pair,
    method: Method | str,
    protocol: Protocol | None,
    classes: Sequence[int] | None,
    images: Tensor | None,
    asked: Asked,
) -> Pair:
    """The pair with the weight that suits the few shots; features of new classes have no say."""
    _, one = settled(pair, method, protocol, asked)
    if one.tune == "none":
        return pair.at(EVEN)
    known = _classes(pair, one) if classes is None else classes
    real = replace(one, synthesize=None)
    return weighed(pair, lambda at: fit(at, method, real, classes=known, images=images))


def _classes(store: FeatureStore, protocol: Protocol) -> Sequence[int]:
    """The ids of the classes to learn: known ones, base ones where others are made, else all."""
    if protocol.synthesize is not None:
        return halves(store.labels("train"), store.n_classes)[0]
    if protocol.known is None:
        return range(store.n_classes)
    return known_classes(store.classnames, checked_known(protocol.known))


def _recipe(store: FeatureStore, method: Method) -> PublishedRecipe:
    """The method's published recipe for the store's dataset.

    Raises:
        UserError: There is none, or the store lacks the augmented views that it learns from.
    """
    recipe = method.published_recipe(store.dataset)
    n_views = store.split("train").n_views
    if n_views < recipe.views:
        raise UserError(
            f"{method.name}'s published recipe learns from {recipe.views} augmented views of each "
            f"train image, and {store.path} has {n_views}; extract it with --views {recipe.views}"
        )
    return recipe


@contextmanager
def _text_left_out(method: Method, protocol: Protocol) -> Iterator[None]:
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


def _support(
    train: Split, method: Method, sample: Sample, classes: Sequence[int], views: bool
) -> SupportSet:
    """The few shots' features, with their views where they are wanted and there are some."""
    kept, labels = restrict(train.labels[sample.train], classes)
    rows = sample.train[kept]
    return support_set(train, method, rows, labels, len(classes), views=views)


def _validation(
    val: Split, method: Method, sample: Sample, tune: str, classes: Sequence[int]
) -> Labeled:
    """The validation images that the protocol tunes on, and their labels."""
    rows = np.arange(len(val)) if tune == "full-val" else sample.val
    if rows is None:
        raise UserError("the sample has no val rows to tune by val on; tune by cv, or draw again")
    kept, labels = restrict(val.labels[rows], classes)
    return query(val, method, rows[kept]), torch.from_numpy(labels)
