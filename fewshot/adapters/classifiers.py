"""A classifier as plain values and tensors, and back: what a file can hold without pickling.

Only the classes named here are ever made from a file.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from cache.errors import UserError
from fewshot.classifier import Classifier, LinearClassifier
from fewshot.methods.clip_adapter import AdapterClassifier, Adapters
from fewshot.methods.proker import KernelClassifier
from fewshot.methods.taskres import ShiftedClassifier
from fewshot.methods.tip_x import TipXClassifier
from fewshot.methods.transclip import JointClassifier, TransCLIP
from fewshot.parts.key_value_cache import CacheClassifier, KeyValueCache
from fewshot.support import SupportSet
from fewshot.text import Text

KINDS: dict[str, type[Any]] = {
    "linear": LinearClassifier,
    "cache": CacheClassifier,
    "keys and values": KeyValueCache,
    "tip-x": TipXClassifier,
    "kernel": KernelClassifier,
    "shifted": ShiftedClassifier,
    "adapter": AdapterClassifier,
    "adapters": Adapters,
    "joint": JointClassifier,
    "transclip": TransCLIP,
    "support set": SupportSet,
    "text": Text,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def take_apart(classifier: Classifier) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The classifier as JSON values, in which tensors stand by name, and these tensors.

    Raises:
        TypeError: It has a part that is none of `KINDS`, nor a tensor or a plain value.
    """
    tensors: dict[str, Tensor] = {}

    def apart(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach()
            return {"tensor": path}
        if type(value) in _NAMES:
            parts = {
                field.name: apart(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
                for field in fields(value)
            }
            return {"kind": _NAMES[type(value)], "fields": parts}
        if isinstance(value, Mapping):
            return {"values": dict(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{path} is a {type(value).__name__}, which an adapter file cannot hold")

    whole: dict[str, Any] = apart(classifier, "")
    return whole, tensors


def put_together(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Classifier:
    """The classifier that `take_apart` took apart.

    Raises:
        UserError: A kind that is not known here, or parts that make no such thing.
    """

    def together(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "values" in value:
            return dict(value["values"])
        parts = {name: together(part) for name, part in value["fields"].items()}
        return KINDS[value["kind"]](**parts)

    try:
        classifier: Classifier = together(plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the adapter has a part that this version does not know ({error}); "
            "update fewshot, or fit it again"
        ) from None
    return classifier
