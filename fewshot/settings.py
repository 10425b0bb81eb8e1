"""A method from its name and settings given as text, as on a command line."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cache.errors import UserError, unknown
from fewshot.classifier import Method
from fewshot.methods import METHODS


def configure(
    name: str, settings: Mapping[str, str] | None = None, *, logit_scale: float | None = None
) -> Method:
    """The method of that name with some of its fields set.

    Args:
        name: One of `METHODS`.
        settings: Field -> value, as text: `{"alpha": "4", "shrinkage": "oas"}`.
        logit_scale: The store's, for methods that have the field and settings that lack it.

    Raises:
        UserError: No such method, no such field, or a value that the field cannot take.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]()
    names = [field.name for field in fields(method)]
    types = get_type_hints(type(method))
    values: dict[str, Any] = {}
    if logit_scale is not None and "logit_scale" in names:
        values["logit_scale"] = logit_scale
    for field, text in (settings or {}).items():
        if field not in names:
            raise unknown(f"setting of {name}", field, names)
        values[field] = _parsed(field, text, types[field])
    return replace(method, **values)


def _parsed(field: str, text: str, kind: Any) -> Any:
    """The value that the text stands for: the first of the field's types that it fits."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for one in kinds:
        if get_origin(one) is Literal:
            if text in get_args(one):
                return text
        elif one is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        else:
            with suppress(ValueError):
                return one(text)
    raise UserError(f"{field} must be {_words(kinds)}; got {text!r}")


def _words(kinds: tuple[Any, ...]) -> str:
    """What the types accept, in words."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    return " or ".join([*choices, *(words[kind] for kind in kinds if kind in words)])
