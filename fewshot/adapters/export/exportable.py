"""Adapters that other programs can compute: of one model, and images one by one."""

from cache.errors import UserError, unknown
from fewshot.adapters.adapter import Adapter
from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.methods import METHODS


def require_exportable(adapter: Adapter) -> None:
    """Raise unless a fixed graph of one crop can give the adapter's probabilities.

    Raises:
        UserError: It cannot.
    """
    _require_one_model(adapter)
    _require_method(adapter)


def require_one_label(adapter: Adapter) -> None:
    """Raise if images may have several labels, for which open_clip's folder has no place.

    Raises:
        UserError: They may.
    """
    if adapter.label_rule is not None:
        raise UserError(
            "a folder of open_clip holds a classifier of classes that exclude one another, and "
            "this adapter gives an image several labels; export it with --to onnx"
        )


def _require_one_model(adapter: Adapter) -> None:
    """Refuse a pair."""
    if adapter.beside is not None:
        raise UserError(
            f"an export takes one crop of an image, and the two models of {adapter.model_name} "
            "crop it each in its own way; use `fewshot predict`, or fit and export one of the two"
        )


def _require_method(adapter: Adapter) -> None:
    """Refuse a method that is not known here, or that classifies images jointly."""
    known = TRAINED if adapter.classifier is None else METHODS
    if adapter.method not in known:
        raise unknown("method", adapter.method, known)
    if known[adapter.method].transductive:
        raise UserError(
            f"{adapter.method} cannot be exported: the logits of an image depend on the images "
            "beside it, which a fixed graph does not see; use `fewshot predict`, or export a "
            "method such as gda"
        )
