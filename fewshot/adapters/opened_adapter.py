"""Open an adapter: with its model to classify images, or without one to classify features."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.arrays.image_tower import ImageTower
from cache.errors import UserError
from cache.images.preprocessing import Preprocess
from cache.location import pair_names
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.classifiers import put_together
from fewshot.adapters.predictor import FeaturePredictor, Predictor
from fewshot.adapters.same_model import preprocessing, require_model
from fewshot.adapters.two_crops import TwoCrops
from fewshot.method import Method
from fewshot.methods import METHODS
from fewshot.parts.projected import PooledClassifier

if TYPE_CHECKING:
    from fewshot.endtoend.clip import Clip, Learner


def open_adapter(
    adapter: Adapter | Path | str,
    *,
    model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Predictor:
    """The adapter and its model, ready to classify.

    Args:
        adapter: What was learned, or its file.
        model: The model under another name, such as `local-dir:` of the same weights.
        device: As in `encoder.load`.
        precision: As in `encoder.load`.

    Raises:
        UserError: The model cannot be had, or is another than the adapter was made with.
    """
    if not isinstance(adapter, Adapter):
        adapter = load_adapter(adapter)
    names = pair_names(model or adapter.model_name)
    if (names is None) != (adapter.beside is None):
        raise UserError(
            f"this adapter was made with {adapter.model_name}, and {model} is "
            f"{'one model' if names is None else 'a pair of models'}; give --model the like of it"
        )
    encoders = [
        load(name, device=device, precision=precision)
        for name in names or (model or adapter.model_name,)
    ]
    return with_encoder(adapter, encoders[-1], encoders[0] if names else None)


def with_encoder(adapter: Adapter, encoder: Encoder, beside: Encoder | None = None) -> Predictor:
    """The adapter on a model that is loaded already, or on two.

    Args:
        adapter: What was learned.
        encoder: The model; of a pair, the second.
        beside: The first of a pair.

    Raises:
        UserError: The model is another than the adapter was made with.
    """
    require_model(adapter.model, encoder.identity)
    preprocess = preprocessing(adapter.preprocessing, encoder)
    if adapter.classifier is None:
        return _end_to_end(adapter, encoder, preprocess)
    unit = method_of(adapter).unit_norm

    encode, first = encoder.encode_images, None
    if adapter.beside is not None and beside is not None:
        require_model(adapter.beside.model, beside.identity)
        first = preprocessing(adapter.beside.preprocessing, beside)
        encode = partial(
            TwoCrops(first, preprocess).features,
            encoders=(beside, encoder),
            weight=adapter.beside.weight,
        )

    learned = without_model(adapter, encoder.image_tower)

    def features(pixels: Tensor) -> Tensor:
        if learned.tower is not None:
            return encoder.encode_images_pooled(pixels)[:, encoder.dim :]
        encoded = encode(pixels)
        return normalize(encoded, dim=-1) if unit else encoded

    return Predictor(
        adapter, learned.logits, learned.jointly, preprocess, features, encoder.device, first,
        tower=learned.tower,
    )  # fmt: skip


def without_model(adapter: Adapter, tower: ImageTower | None = None) -> FeaturePredictor:
    """The adapter of a method on features, for features that exist already.

    Args:
        adapter: What was learned.
        tower: The layers that make features of pooled images, where there are such.

    Raises:
        UserError: Its method was trained end to end, or is none of this version, or classifies
            pooled images, and there are none.
    """
    if adapter.classifier is None:
        raise UserError(
            f"{adapter.method} was trained through the model, so it classifies images, not the "
            "features of a store; name images or a folder"
        )
    jointly = method_of(adapter).transductive
    classifier = put_together(adapter.classifier, adapter.tensors)
    if not isinstance(classifier, PooledClassifier):
        return FeaturePredictor(adapter, classifier.logits, jointly)
    if tower is None:
        raise UserError(
            f"this adapter of {adapter.method} classifies pooled images, and there are none; "
            "extract the store with --pre-projection, or name images"
        )
    return FeaturePredictor(adapter, classifier.logits, jointly, tower=tower)


def method_of(adapter: Adapter) -> type[Method]:
    """The method of an adapter that classifies features.

    Raises:
        UserError: No such method in this version.
    """
    method = METHODS.get(adapter.method)
    if method is None:
        raise UserError(
            f"{adapter.method!r} is no method of this version; update fewshot, or fit again"
        )
    return method


def _end_to_end(adapter: Adapter, encoder: Encoder, preprocess: Preprocess) -> Predictor:
    from fewshot.endtoend.clip import Clip

    learner, clip = attached(adapter, Clip.of(encoder))
    encode = learner.images or clip.model.encode_image
    with torch.no_grad(), clip.autocast():
        fixed = learner.frozen()

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        with clip.autocast():
            encoded: Tensor = encode(pixels.to(clip.device))
        return encoded.float().cpu()

    @torch.no_grad()
    def logits(features: Tensor) -> Tensor:
        with clip.autocast():
            return fixed.logits(features.to(clip.device)).cpu()

    return Predictor(adapter, logits, False, preprocess, features, encoder.device)


def attached(adapter: Adapter, clip: "Clip") -> "tuple[Learner, Clip]":
    """Put an end-to-end method into the model with what it had learned; the model is changed.

    Raises:
        UserError: No such method here, or it makes other parameters of these settings.
    """
    from fewshot.endtoend.methods import METHODS as TRAINED

    settings = dict(adapter.settings)
    if settings.get("head") == "tuned":  # what a trained head was called at first
        settings["head"] = "trained"
    try:
        method = TRAINED[adapter.method](**settings)
        learner = method.attach(clip, adapter.classnames, adapter.templates)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{adapter.method!r} with these settings is no method of this version ({error}); "
            "update fewshot, or train again"
        ) from None
    learner.load_state({name: t.to(clip.device) for name, t in adapter.tensors.items()})
    return learner, clip
