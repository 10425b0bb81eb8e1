"""A method fitted to few shots of several labels each: drawn, tuned, fitted, never tested.

Each class is a question of its own: is it on the image or not? Tuning takes the settings of the
highest mean average precision on held-out images of the support set, and the same images say from
which probability on a class is a label.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, Unpack

import torch
from torch import Tensor

from cache.errors import UserError
from cache.pair import EVEN, Pair
from cache.store import FeatureStore
from fewshot.abilities import SupportsMultiLabel
from fewshot.classifier import Classifier
from fewshot.fitted import Fitted
from fewshot.label_rule import LabelRule
from fewshot.method import Method, variants
from fewshot.methods import METHODS
from fewshot.multi_label.label_metrics import average_precisions, mean_known
from fewshot.multi_label.positives import draw_positives, positive_folds
from fewshot.multi_label_support import MultiLabelSupport
from fewshot.protocol import Asked, Protocol
from fewshot.settling import run_on, settled
from fewshot.store_features import class_text, query
from fewshot.text import Text

TUNED_BY = ("cv", "none")
AnyMethod = TypeVar("AnyMethod", bound=Method)


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedLabels(Fitted):
    """A classifier of images that may have several labels, and what it was made of.

    Attributes:
        label_support: The support set; None where it learned from no labels.
        rule: From logits to labels; None where no image could be held out to find it.
    """

    label_support: MultiLabelSupport | None
    rule: LabelRule | None


def fit_labels(
    store: FeatureStore | Path | str,
    method: Method | str,
    protocol: Protocol | None = None,
    **asked: Unpack[Asked],
) -> FittedLabels:
    """Draw the few shots, tune on them, fit, and find the thresholds.

    Of a pair, both models weigh the same unless it has a weight.

    Args:
        store: Features of images that may have several labels.
        method: A method, or its name, as in `fitting.fit`.
        protocol: What is asked; the default `Protocol()` without it.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: Images have one label each, the method is of one label each, or the protocol
            asks for what is; or a class has too few images.
    """
    store = FeatureStore.of(store)
    method, protocol = settled(store, method, protocol, asked)
    protocol = of_several_labels(store, protocol)
    require_several(method)
    if isinstance(store, Pair) and store.weight is None:
        store = store.at(EVEN)
    text = class_text(store, method, protocol.prompt_set, range(store.n_classes))
    if not protocol.support_for(method):
        start = time.perf_counter()
        classifier: Classifier = method.fit_unlabeled(None, text)
        return _fitted(store, method, protocol, classifier, text, start)
    train = store.split("train")
    sample = draw_positives(
        train.label_sets, store.classnames, shots=protocol.shots, seed=protocol.seed
    )
    label_sets = torch.from_numpy(train.label_sets[sample.train])
    views = None
    if protocol.views and train.n_views:
        views = torch.from_numpy(train.views(sample.train, unit=method.unit_norm))
    support = MultiLabelSupport(query(train, method, sample.train), label_sets, views)
    start = time.perf_counter()
    fewest = int(support.counts.min())
    run = run_on(store, method, protocol, sample.shots, fewest, support.n_views)
    rule = None
    if fewest > 1:
        method, held = _tuned(method, support, text, protocol, tune=run.tune == "cv")
        fold, logits = held
        judged, truth = logits[fold >= 0], support.label_sets[fold >= 0]
        found = mean_known(average_precisions(judged, truth))
        rule = LabelRule.found_on(judged, truth, found)
    classifier = fit_several(method, support, text)
    return _fitted(store, method, protocol, classifier, text, start, sample.shots, support, rule)


def of_several_labels(store: FeatureStore, protocol: Protocol) -> Protocol:
    """The protocol, in the setting of several labels.

    Raises:
        UserError: Images have one label each, or it asks for what is of one label each.
    """
    if not store.multi_label:
        raise UserError(
            f"images of {store.dataset} have one label each; leave the setting multi-label out"
        )
    odd = {
        f"the setting {protocol.setting}": protocol.setting not in ("few-shot", "multi-label"),
        f"tuning by {protocol.tune}": protocol.tune not in (None, *TUNED_BY),
        f"imbalance {protocol.imbalance}": protocol.imbalance not in (None, "natural"),
        "a sample": protocol.sample is not None,
        f"blend {protocol.blend}": protocol.blend != "auto",
    }
    given = [what for what, asked in odd.items() if asked]
    if given:
        raise UserError(
            f"images of {store.dataset} may have several labels, and {given[0]} is for one label "
            "each; leave it out"
        )
    return replace(protocol, setting="multi-label")


def require_several(method: Method) -> None:
    """Raise unless the method can give an image several labels.

    Raises:
        UserError: It takes the classes to exclude one another.
    """
    if not isinstance(method, SupportsMultiLabel):
        able = [name for name, one in METHODS.items() if issubclass(one, SupportsMultiLabel)]
        raise UserError(
            f"{method.name} takes classes to exclude one another, and these images may have "
            f"several labels; use {', '.join(able)}"
        )


def fit_several(method: Method, support: MultiLabelSupport, text: Text | None) -> Classifier:
    """The classifier of a method that `require_several` lets pass."""
    assert isinstance(method, SupportsMultiLabel)
    return method.fit_multi_label(support, text)


def _tuned(
    method: AnyMethod,
    support: MultiLabelSupport,
    text: Text | None,
    protocol: Protocol,
    *,
    tune: bool,
) -> tuple[AnyMethod, tuple[Tensor, Tensor]]:
    """The method with the best settings, the fold (N,) of each image and its held-out logits.

    Of equal settings the method's own come first, then the grid's first.
    """
    grid = {k: v for k, v in method.grid.items() if k not in protocol.fixed} if tune else {}
    tried = list(dict.fromkeys([method, *variants(method, grid)]))
    fold = positive_folds(support.label_sets)
    judged = fold >= 0
    logits = torch.zeros(len(tried), *support.label_sets.shape)
    for k in range(int(fold.max()) + 1):
        held = fold == k
        part, features = support.subset(~held), support.features[held]
        for i, variant in enumerate(tried):
            logits[i, held] = fit_several(variant, part, text).logits(features)
    reached = [
        mean_known(average_precisions(one[judged], support.label_sets[judged])) for one in logits
    ]
    best = max(range(len(tried)), key=reached.__getitem__)
    return tried[best], (fold, logits[best])


def _fitted(
    store: FeatureStore,
    method: Method,
    protocol: Protocol,
    classifier: Classifier,
    text: Text | None,
    start: float,
    shots: int = 0,
    support: MultiLabelSupport | None = None,
    rule: LabelRule | None = None,
) -> FittedLabels:
    fewest, n_views = (0, 1) if support is None else (int(support.counts.min()), support.n_views)
    return FittedLabels(
        run=run_on(store, method, protocol, shots, fewest, n_views),
        store=store,
        method=method,
        classifier=classifier,
        support=None,
        text=text,
        n_images=0 if support is None else len(support),
        n_validation=0,
        seconds=time.perf_counter() - start,
        measures={"pair_weight": store.share} if isinstance(store, Pair) else {},
        label_support=support,
        rule=rule,
    )
