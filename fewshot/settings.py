"""A method from its name and settings given as text, as on a command line."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cache.errors import UserError, unknown
from fewshot.method import Method, MethodInfo
from fewshot.methods import METHODS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyMethod = TypeVar("AnyMethod", bound="DataclassInstance")


def configure(
    name: str, settings: Mapping[str, str] | None = None, *, logit_scale: float | None = None
) -> Method:
    """The cached method of that name with some of its fields set.

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
    if logit_scale is not None and "logit_scale" in {field.name for field in fields(method)}:
        method = replace(method, logit_scale=logit_scale)
    return with_settings(method, settings or {}, name)


def with_settings(method: AnyMethod, settings: Mapping[str, str], name: str) -> AnyMethod:
    """The dataclass with some of its fields set from text.

    Raises:
        UserError: No such field, or a value that the field cannot take.
    """
    names = [field.name for field in fields(method)]
    types = get_type_hints(type(method))
    values: dict[str, Any] = {}
    for field, text in settings.items():
        if field not in names:
            raise unknown(f"setting of {name}", field, names)
        values[field] = _parsed(field, text, types[field])
    return replace(method, **values)


def describe(name: str, methods: Mapping[str, type[MethodInfo]] = METHODS) -> str:
    """A method's documentation, and each setting with what it accepts, its default and its grid.

    Raises:
        UserError: No such method.
    """
    if name not in methods:
        raise unknown("method", name, methods)
    method = methods[name]
    types = get_type_hints(method)
    lines = [inspect.cleandoc(method.__doc__ or ""), "", "Settings (--set NAME=VALUE):"]
    for field in fields(method):
        kind = types[field.name]
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        lines.append(f"    {field.name}: {_words(kinds)}; default {field.default}")
        if field.name in method.grid:
            tried = ", ".join(f"{value}" for value in method.grid[field.name])
            lines.append(f"        tuning tries {tried}")
    return "\n".join(lines)


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
