"""The winner of a comparison, fitted to all labels, and what it says of the photos."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache.datasets.source import Source
from cache.pair import same_weight
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.fitted_adapter import of_fitted
from fewshot.automatic.backbones import Compared
from fewshot.automatic.diagnostics import Diagnostics, diagnose
from fewshot.automatic.encoding import Encoding, encode_unlabeled
from fewshot.automatic.judging import CrossValidation, inputs, refit
from fewshot.automatic.outcome import Tested
from fewshot.automatic.stopwatch import Stopwatch
from fewshot.automatic.unlabeled import Unlabeled, classify_unlabeled
from fewshot.classifier import classify
from fewshot.fitted import Fitted
from fewshot.methods import GDA
from fewshot.metrics import accuracy, wilson
from fewshot.model_selection.calibration import Calibration, calibrate
from fewshot.model_selection.conformal import ByClass, by_class
from fewshot.model_selection.unknown_classes import OpenSet, find_open_set
from fewshot.store_features import query


@dataclass(frozen=True, eq=False)
class Examined:
    """The winner and its findings.

    Attributes:
        adapter: The winner, fitted to all labels and calibrated.
        fitted: The same before it was written as an adapter.
        diagnostics: What its answers out of fold say of the photos.
        tested: The winner on the user's own test images; None without any, and while other
            methods are still to be tried.
        unlabeled: What it makes of images without a label; None without any.
    """

    adapter: Adapter
    fitted: Fitted
    diagnostics: Diagnostics
    tested: Tested | None
    unlabeled: Unlabeled | None


class Examiner:
    """Examines one answer after the other; nothing is found out twice.

    Args:
        unlabeled: Images without a label, if any.
        encoding: Returns how a model of that name encodes.
        stopwatch: Counts the stages.
        seed: Of folds, resamples and training.
    """

    def __init__(
        self,
        unlabeled: Source | None,
        encoding: Callable[[str], Encoding],
        stopwatch: Stopwatch,
        seed: int,
    ) -> None:
        self._photos, self._encoding = unlabeled, encoding
        self._stopwatch, self._seed = stopwatch, seed
        self._stores: dict[str, FeatureStore | None] = {}  # by the model
        self._open_sets: dict[str, OpenSet | None] = {}  # by the features: no method matters
        self._found: dict[tuple[str, str], tuple[Fitted, Diagnostics, Unlabeled | None]] = {}

    def __call__(self, answer: Compared) -> Examined:
        """Fit the winner of an answer to all labels, and look at the photos with it."""
        store, validation = answer.store, answer.validation
        features = f"{store.fingerprint} {store.logit_scale}"
        calibration = _calibration(validation)
        if features not in self._open_sets and validation.winner is not None:
            self._open_sets[features] = self._open_set(store)
        key = features, validation.method.name
        if key not in self._found:
            self._found[key] = self._findings(answer, calibration.temperature)
        fitted, diagnostics, unlabeled = self._found[key]
        tested = None
        if "test" in store.splits and not validation.pending:
            tested = _tested(store, fitted)
        open_set = self._open_sets.get(features)
        adapter = _adapter(fitted, validation, calibration, open_set, tested)
        return Examined(adapter, fitted, diagnostics, tested, unlabeled)

    def _open_set(self, store: FeatureStore) -> OpenSet | None:
        """How well photos of classes held out are told from the others."""
        support_of, text_for = inputs(store)
        with self._stopwatch.timing("hiding classes"):
            return find_open_set(
                support_of(GDA()), text_for(GDA()), logit_scale=store.logit_scale, seed=self._seed
            )

    def _findings(
        self, answer: Compared, temperature: float
    ) -> tuple[Fitted, Diagnostics, Unlabeled | None]:
        store, validation = answer.store, answer.validation
        photos = self._encoded(answer.model)
        support_of, text_for = inputs(store)
        with self._stopwatch.timing("fitting the winner", aloud=True):
            fitted = refit(store, validation, support_of, text_for, seed=self._seed)
        method = fitted.method
        with self._stopwatch.timing("looking at labels"):
            diagnostics = diagnose(
                validation, method, temperature, support_of(method), text_for(method),
                seed=self._seed,
            )  # fmt: skip
        if self._photos is None or photos is None:
            return fitted, diagnostics, None
        beside = same_weight(photos, store)
        return fitted, diagnostics, classify_unlabeled(fitted, temperature, beside, self._photos)

    def _encoded(self, model: str) -> FeatureStore | None:
        """Features of the images without a label."""
        if self._photos is None:
            return None
        if model not in self._stores:
            encoding = self._encoding(model)
            with self._stopwatch.timing("encoding"):
                self._stores[model] = encode_unlabeled(self._photos, encoding)
        return self._stores[model]


def _calibration(validation: CrossValidation) -> Calibration:
    """Calibrate the winner on its out-of-fold logits; its accuracy is corrected for the choice."""
    winner, selection = validation.winner, validation.selection
    if winner is None or selection is None:
        return Calibration()
    seen = winner.judged
    found = calibrate(winner.logits[seen], validation.labels[seen], "cv")
    return replace(found, accuracy=selection.accuracy, interval=selection.interval)


def _adapter(
    fitted: Fitted,
    validation: CrossValidation,
    calibration: Calibration,
    open_set: OpenSet | None,
    tested: Tested | None,
) -> Adapter:
    """The winner, with how it was chosen among what is told of its training."""
    selection, winner = validation.selection, validation.winner
    held_out: ByClass = ()
    if winner is not None:
        seen, t = winner.judged, calibration.temperature
        held_out = by_class(winner.logits[seen], validation.labels[seen], t)
    more: dict[str, Any] = {
        "tune": "cv" if fitted.method.grid and winner is not None else "none",
        "tried": [one.name for one in validation.tried],
        **({"still to be tried": list(validation.pending)} if validation.pending else {}),
        "expected accuracy": selection and selection.accuracy,
        "expected accuracy, 95 % interval": selection and selection.interval,
    }
    if tested is not None:
        more |= {"test accuracy": tested.accuracy, "test images": tested.images}
    return of_fitted(
        fitted, calibration=calibration, held_out=held_out, open_set=open_set, more=more
    )


def _tested(store: FeatureStore, fitted: Fitted) -> Tested:
    """The winner on the user's own test images."""
    test = store.split("test")
    labels = torch.from_numpy(test.labels)
    right = accuracy(classify(fitted.classifier, query(test, fitted.method)), labels)
    return Tested(len(labels), right, wilson(right, len(labels)))
