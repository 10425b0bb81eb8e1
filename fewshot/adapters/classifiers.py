"""A classifier as plain values and tensors, and back: what a file can hold without pickling.

Only the classes that the methods name in `saved_as` are ever made from a file.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from cache.errors import UserError
from fewshot.classifier import Classifier
from fewshot.methods import METHODS
from fewshot.model_selection.blending import BlendedClassifier
from fewshot.support import SupportSet
from fewshot.text import Text

WORDS = {"stats": "measures"}  # field -> its name in files, where the two differ
OLD_WORDS = {"neighbours": "neighbors"}  # of files made before -> field


def kinds() -> dict[str, type[Any]]:
    """Return the classes that a classifier may consist of, by the name that a file calls them."""
    every = [BlendedClassifier, SupportSet, Text, *METHODS.values()]
    every += [part for method in METHODS.values() for part in method.saved_as]
    return {part.kind: part for part in every if hasattr(part, "kind")}


def take_apart(
    classifier: object, parts: Mapping[str, type[Any]] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The classifier as JSON values, in which tensors stand by name, and these tensors.

    Args:
        classifier: Or whatever else is made of the parts.
        parts: The classes it may consist of, by kind; `kinds` without it.

    Raises:
        TypeError: It has a part that is none of `kinds`, nor a tensor or a plain value.
    """
    tensors: dict[str, Tensor] = {}
    names = {part: name for name, part in (parts or kinds()).items()}

    def apart(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach()
            return {"tensor": path}
        if type(value) in names:
            apart_fields = {
                WORDS.get(field.name, field.name): apart(
                    getattr(value, field.name), f"{path}.{field.name}".lstrip(".")
                )
                for field in fields(value)
            }
            return {"kind": names[type(value)], "fields": apart_fields}
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
    try:
        classifier: Classifier = put_parts_together(plain, tensors, kinds())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the adapter has a part that this version does not know ({error}); "
            "update fewshot, or fit it again"
        ) from None
    return classifier


def put_parts_together(
    plain: Mapping[str, Any], tensors: Mapping[str, Tensor], parts: Mapping[str, type[Any]]
) -> Any:
    """Put together what `take_apart` took apart into these parts, by kind.

    Raises:
        KeyError, TypeError, AttributeError: The values are not of its form.
    """
    words = {word: field for field, word in WORDS.items()} | OLD_WORDS

    def together(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "values" in value:
            return dict(value["values"])
        fields = {words.get(name, name): together(part) for name, part in value["fields"].items()}
        return parts[value["kind"]](**fields)

    return together(plain)
