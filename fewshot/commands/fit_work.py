"""The work of `fit`: options that can stand together, the stores and few shots, the results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UserError

if TYPE_CHECKING:
    from cache.store import FeatureStore
    from fewshot.adapters.adapter import Adapter
    from fewshot.method import Method
    from fewshot.protocol import Protocol, Setting
    from fewshot.results.log import Result

SETTINGS: "Mapping[str, Setting]" = {
    "--base-to-new": "base-to-new",
    "--generalized": "generalized",
    "--test-on": "cross-dataset",
    "--source": "domain-adaptation",
    "--known": "few-shot",  # of which the protocol makes an open set
}


def one_of_settings(**asked: object) -> str | None:
    """The one option of `SETTINGS` that is given, by the names in Python; None where none is.

    Raises:
        UserError: There are several.
    """
    given = [option for option in SETTINGS if asked[option[2:].replace("-", "_")]]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude one another; give one")
    return given[0] if given else None


def refuse_contradictions(
    given: str | None,
    *,
    sample: Path | None,
    export_sample: Path | None,
    uneven: bool,
    official: bool,
    tune: str | None,
    threshold: float | None,
    score: str | None,
    save: Path | None,
    temperature: float | None,
) -> None:
    """Raise unless these options can stand together.

    Args:
        given: The option of `SETTINGS` that is given.
        sample: As typed, like the rest.
        export_sample: See `fit`.
        uneven: The classes get few shots by another rule than K of each.
        official: See `fit`.
        tune: See `fit`.
        threshold: See `fit`.
        score: See `fit`.
        save: See `fit`.
        temperature: See `fit`.

    Raises:
        UserError: Two of them contradict each other.
    """
    if given == "--source" and (sample or official):
        raise UserError("--source excludes --sample and --official; give one")
    if threshold is not None and given != "--source":
        raise UserError("--threshold is for domain adaptation; give --source as well")
    if score is not None and given != "--known":
        raise UserError("--score separates known images from unknown ones; give --known as well")
    if (sample or export_sample) and (given or uneven):
        raise UserError(
            "--sample and --export-sample are of equal classes, all of them tested: they and "
            f"{', '.join(SETTINGS)}, --imbalance and --shots all exclude one another; give one"
        )
    if sample is not None and export_sample is not None:
        raise UserError("--sample and --export-sample exclude each other; copy the file instead")
    if temperature is not None and save is None:
        raise UserError("--temperature is of the saved adapter; give --save as well")
    if official and tune is not None:
        raise UserError("--official decides itself what is tuned on; leave --tune out")


def at_weight(store: "FeatureStore", weight: float | None) -> "FeatureStore":
    """The pair at a weight of its first model; any store as it is where no weight is given.

    Raises:
        UserError: The store is no pair.
    """
    from cache.pair import Pair

    if weight is None:
        return store
    if not isinstance(store, Pair):
        raise UserError(
            "--pair-weight shares out the cosine between two models; give --model FIRST+SECOND"
        )
    return store.at(weight)


def exported(
    protocols: Sequence["Protocol"], store: "FeatureStore", path: Path
) -> list["Protocol"]:
    """The one protocol there is, with the sample that it draws, which is written to the file.

    Raises:
        UserError: There are several.
    """
    from fewshot.sample_file import write_sample

    if len(protocols) > 1:
        raise UserError("--export-sample writes one sample; give one --shots and one --seed")
    val = store.labels("val") if "val" in store.splits else None
    few = protocols[0].draw(store.labels("train"), store.classnames, val_labels=val)
    write_sample(path, few, store)
    return [replace(protocols[0], sample=few)]


def results_of(
    method: "Method",
    protocols: Sequence["Protocol"],
    store: "FeatureStore",
    *,
    source: "FeatureStore | None",
    targets: Sequence["FeatureStore"],
    predictions: Path | None,
) -> Iterator["Result"]:
    """Fit and test by each protocol; by one of those whose shots and seed make no difference.

    Args:
        method: As set; tuned where the protocol says so.
        protocols: Of any shots and seeds.
        store: The dataset.
        source: Labeled images that are learned from in its place, adapted to it.
        targets: The datasets that are tested in its place.
        predictions: The folder for these, or None.
    """
    from fewshot.cross_dataset import transfer
    from fewshot.domain_adaptation import adapt
    from fewshot.evaluation import evaluate

    alike = [one for one in protocols if not one.support_for(method)]
    for one in [one for one in protocols if one not in alike[1:]]:
        if source is not None:
            yield adapt(source, store, method.name, one, save=predictions)
        elif targets:
            yield from transfer(store, targets, method.name, one, save=predictions)
        else:
            yield evaluate(store, method.name, one, save=predictions)


def save_adapter(
    path: Path,
    method: str,
    protocols: Sequence["Protocol"],
    store: "FeatureStore",
    *,
    predictions: Path | None,
    temperature: float | None,
) -> tuple["Adapter", list["Result"]]:
    """Fit one adapter of all classes and save it; its result comes too, where it can be tested.

    Args:
        path: The adapter's file.
        method: Its name.
        protocols: Must be one, of all classes.
        store: The dataset.
        predictions: The folder for these, or None.
        temperature: Of the adapter's probabilities; found by cross-validation without it.

    Raises:
        UserError: There are several protocols, or one of a part of the classes.
    """
    from fewshot.adapters.fitted_adapter import fit_and_save

    if protocols[0].setting != "few-shot" or len(protocols) > 1:
        raise UserError(
            "--save keeps one adapter of all classes; give one --shots and one --seed, "
            f"and none of {', '.join(SETTINGS)}"
        )
    saved, result = fit_and_save(
        store, method, path, protocols[0], predictions=predictions, temperature=temperature
    )
    return saved, [] if result is None else [result]
