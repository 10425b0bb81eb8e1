"""Learn one dataset, test others, each on its own classes."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from cache.errors import UserError
from cache.pair import same_weight
from cache.store import FeatureStore
from fewshot.classifier import Classifier
from fewshot.fitting import fit
from fewshot.method import Method
from fewshot.new_classes import Columns, require_new_classes, unseen_classes
from fewshot.protocol import Asked, Protocol
from fewshot.results.log import Result
from fewshot.run import setting_name
from fewshot.settling import settled
from fewshot.store_features import query
from fewshot.tested import classify_test, require_test_split, result_on


def transfer(
    source: FeatureStore | Path | str,
    targets: Collection[FeatureStore | Path | str],
    method: Method | str,
    protocol: Protocol | None = None,
    *,
    save: Path | str | None = None,
    **asked: Unpack[Asked],
) -> list[Result]:
    """Fit on one dataset, then test on others; a result for each.

    Where a target's classes are among the source's, as those of ImageNet's variants are, the
    logits of these are looked at and the setting is domain generalization. Where they are not, the
    method has to classify classes of which it has text alone, and the setting is cross-dataset.

    Args:
        source: The store that the few shots are drawn from.
        targets: Stores of the same model with a test split each, or their files.
        method: A method, or its name, as in `fitting.fit`.
        protocol: What is asked; the default `Protocol()` without it. Its prompt set makes the text
            features of source and targets. The setting is the targets'.
        save: A folder to write the predictions into.
        **asked: Fields of a `Protocol`, which take the place of the protocol's own.

    Raises:
        UserError: As `evaluate`; stores of different models; or, across datasets, a method that
            cannot classify classes without images.
    """
    source, opened = FeatureStore.of(source), [FeatureStore.of(target) for target in targets]
    configured, protocol = settled(source, method, protocol, {**asked, "setting": "cross-dataset"})
    columns = {}
    for target in opened:
        require_one_model(source, target)
        columns[target.path] = shared_classes(source, target)
        require_test_split(target)
        if columns[target.path] is None:
            require_new_classes(configured, "cross-dataset asks for others")
    fitted = fit(source, method, protocol)
    method = fitted.method
    results = []
    for target in (same_weight(target, fitted.store) for target in opened):
        chosen = columns[target.path]
        classifier: Classifier
        if chosen is None:
            setting, classifier = (
                "cross-dataset",
                unseen_classes(fitted, target, range(target.n_classes)),
            )
        else:
            setting, classifier = "domain-generalization", Columns(fitted.classifier, chosen)
        run = replace(
            fitted.run,
            dataset=target.dataset,
            fingerprint=target.fingerprint,
            setting=setting_name(method, setting),
        )
        test = target.split("test")
        tested = classify_test(classifier, method, query(test, method))
        results.append(result_on(fitted, run, target, test, tested, save=save))
    return results


def require_one_model(source: FeatureStore, target: FeatureStore) -> None:
    """Raise unless both stores hold features of one model."""
    if target.model != source.model:
        raise UserError(
            f"{target.path} holds features of {target.model} and {source.path} of "
            f"{source.model}; extract both with one model"
        )


def shared_classes(source: FeatureStore, target: FeatureStore) -> Tensor | None:
    """(C',) the source's ids of the target's classes; None where some are not among them.

    ImageNet's ids decide where both stores have them, for two of its names occur twice.
    """
    names = [list(store.classnames) for store in (source, target)]
    ids = [store.identity["dataset"].get("class_ids") for store in (source, target)]
    known, wanted = ids if all(ids) else names
    if known == wanted:
        return torch.arange(len(known))
    if any((known.count(one), wanted.count(one)) != (1, 1) for one in wanted):
        return None
    return torch.tensor([known.index(one) for one in wanted])
