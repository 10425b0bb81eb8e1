"""Adapters of a small model, made by hand: fitted to drawn features, or attached and moved."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch.nn.functional import normalize

import fewshot
from cache.models.encoder import Encoder
from cache.store import FeatureStore
from fewshot.adapters.adapter import Adapter
from fewshot.adapters.classifiers import take_apart
from fewshot.adapters.fitted_adapter import of_fitted
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.methods import configure
from fewshot.fitted import Fitted
from fewshot.method import Method
from fewshot.methods import METHODS
from fewshot.model_selection.calibration import Calibration
from fewshot.support import SupportSet
from fewshot.text import Text

NAMES = ("cat", "long_haired dog", "zebra | <b>")
TEMPLATES = ("a photo of a {}.",)
TRAINING = {"dataset": "toy", "shots": 4, "seed": 1, "tune": "cv", "images": 12}
CALIBRATION = Calibration(0.8, 12, "cv", 0.75, (0.5, 0.9), 0.05, 0.1)


def adapter_of(encoder: Encoder, method: str, settings: Any, **more: Any) -> Adapter:
    plain: dict[str, Any] = {
        "method": method,
        "settings": settings,
        "model": dict(encoder.identity),
        "preprocessing": {**encoder.preprocess.identity(), "exif": True},
        "precision": "fp32",
        "classnames": NAMES,
        "prompts": (),
        "templates": TEMPLATES,
        "training": TRAINING,
        "calibration": CALIBRATION,
    }
    return Adapter(**{**plain, **more})


def brisk(name: str, **settings: Any) -> Method:
    """The method with two epochs, where it has any."""
    method = METHODS[name]()
    if "epochs" in method.__dataclass_fields__:
        settings = {"epochs": 2, **settings}
    return replace(method, **settings)


def fitted_on(store: FeatureStore, name: str, **settings: Any) -> Fitted:
    """Fitted to four images of each class of a store."""
    return fewshot.fit(store, brisk(name, **settings), shots=4, tune="none")


def made_of(store: FeatureStore, name: str = "gda") -> Adapter:
    """The adapter of that, not calibrated."""
    return of_fitted(fitted_on(store, name), calibration=Calibration())


def fitted_classifier(name: str, dim: int, **settings: Any) -> Any:
    """Of four images of each class, fitted for two epochs where there are any."""
    method = brisk(name, **settings)
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(12, dim, generator=generator)
    if method.unit_norm:
        features = normalize(features)
    text = normalize(torch.randn(len(NAMES), dim, generator=generator))
    support = SupportSet(features, torch.arange(12) % 3, 3, unit_norm=method.unit_norm)
    return method.fit(support, Text(text, text, torch.arange(len(NAMES))))


def fitted_adapter(encoder: Encoder, name: str, **settings: Any) -> Adapter:
    plain, tensors = take_apart(fitted_classifier(name, encoder.dim, **settings))
    return adapter_of(encoder, name, settings, classifier=plain, tensors=tensors)


def trained_adapter(encoder: Encoder, name: str, **settings: str) -> Adapter:
    """Not trained, but with every parameter moved off where it starts."""
    method = configure(name, settings, seed=1)
    learner = method.attach(Clip.of(encoder), NAMES, TEMPLATES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter_of(encoder, name, asdict(method), classifier=None, tensors=learner.state())
