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
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # its stubs lack it

from cache.errors import UserError, some
from cache.pair import EVEN, Pair
from cache.split import Split
from cache.store import FeatureStore
from fewshot.classifier import Classifier
from fewshot.few_shots import draw_sample, unit_support
from fewshot.fitted import Fitted
from fewshot.method import Method
from fewshot.model_selection import tuning
from fewshot.open_set import checked_known, known_classes
from fewshot.pair_weight import weighed
from fewshot.protocol import OFFICIAL, Asked, Protocol
from fewshot.published_recipe import PublishedRecipe
from fewshot.run import Run
from fewshot.sampling import Sample, halves, restrict
from fewshot.settling import require_labels, run_on, settled
from fewshot.store_features import class_text, query, support_set
from fewshot.support import SupportSet
from fewshot.synthesized_fitting import FitInputs, text_left_out, with_synthesized
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
        with solvable(method):
            return fit_unlabeled(store, method, protocol, text, classes, images)
    train = store.split("train")
    val = store.split("val") if tune in ("val", "full-val") else None
    drawn_val = val.labels if val is not None and tune == "val" else None
    sample = draw_sample(store, protocol, drawn_val)
    views = protocol.views if recipe is None else recipe.views > 0
    support = _support(store, method, sample, classes, views)
    run = run_on(store, method, protocol, sample.shots, support.shots, support.n_views)
    validation = None
    if val is not None and tune is not None and run.tune != "none":
        validation = _validation(val, method, sample, tune, classes)
    if "seed" in {one.name for one in fields(method)} - set(protocol.fixed):
        method = replace(method, seed=run.seed)
    start = time.perf_counter()
    ready = FitInputs(
        support, text, validation, run.blend,
        measures={"pair_weight": store.share} if isinstance(store, Pair) else {},
    )  # fmt: skip
    if protocol.synthesize is not None:
        seen = support
        if not support.unit_norm:  # a generator learns of the same features whatever the method
            seen = unit_support(train, sample, classes, views=views)
        ready = with_synthesized(ready, seen, store, method, protocol, run)
    with solvable(method):
        if recipe is None:
            method, classifier = _tuned(ready, store, method, protocol, run)
        else:
            method, classifier = _published(ready, method, recipe)
    if ready.decoding is not None:
        classifier = ready.decoding.classifier(classifier, unit=method.unit_norm)
    return Fitted(
        run=run,
        store=store,
        method=method,
        classifier=classifier,
        support=ready.support,
        text=ready.text,
        n_images=len(support.labels),
        n_validation=len(validation[1]) if validation else 0,
        seconds=time.perf_counter() - start,
        measures=ready.measures,
    )


@contextmanager
def solvable(method: Method) -> Iterator[None]:
    """Say in a line that equations of the method have no solution, as at a shrinkage of 1e-30.

    Raises:
        UserError: They have none.
    """
    try:
        yield
    except LinAlgError as error:
        raise UserError(
            f"{method.name} finds no solution on these features with these settings; move the "
            "settings toward the defaults, or look for features that are all alike"
        ) from error


def _tuned(
    ready: FitInputs, store: FeatureStore, method: Method, protocol: Protocol, run: Run
) -> tuple[Method, Classifier]:
    """The method as tuned, and the classifier."""
    grid = {name: values for name, values in method.grid.items() if name not in protocol.fixed}
    with nullcontext() if ready.decoding is None else text_left_out(method, protocol):
        return tuning.fit_tuned(
            method, ready.support, ready.text,
            protocol=run.tune, logit_scale=store.logit_scale, share=ready.share,
            validation=ready.validation, grid=grid, fold=ready.fold,
        )  # fmt: skip


def _published(
    ready: FitInputs, method: Method, recipe: PublishedRecipe
) -> tuple[Method, Classifier]:
    """The method as its paper searches it, and the classifier."""
    with few_threads(ready.support):
        if ready.validation is not None:
            method = method.search_published(
                recipe.grid, ready.support, ready.text, *ready.validation
            )
        return method, method.fit(ready.support, ready.text)


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


def _support(
    store: FeatureStore, method: Method, sample: Sample, classes: Sequence[int], views: bool
) -> SupportSet:
    """The few shots' features, with their views where they are wanted and there are some.

    Raises:
        UserError: A class has none, which is possible where all images are taken.
    """
    train = store.split("train")
    kept, labels = restrict(train.labels[sample.train], classes)
    rows = sample.train[kept]
    empty = [store.classnames[k] for k in sorted({*classes} - {*train.labels[rows].tolist()})]
    if empty:
        raise UserError(
            f"every class to learn needs a train image; {store.dataset} has none of {some(empty)}; "
            f"add some, or leave {'that class' if len(empty) == 1 else 'those classes'} out"
        )
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
