"""A method from its name and settings given as text, as on a command line."""

import inspect
import math
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from textwrap import wrap
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cache.errors import UserError, unknown
from fewshot.checks import positive

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fewshot.method import Method, MethodInfo

AnyMethod = TypeVar("AnyMethod", bound="DataclassInstance")


def configure(
    name: str, settings: Mapping[str, Any] | None = None, *, logit_scale: float | None = None
) -> "Method":
    """The cached method of that name with some of its fields set.

    Args:
        name: One of `METHODS`.
        settings: Field -> value, or text of it: `{"alpha": "4", "shrinkage": "oas"}`.
        logit_scale: The store's, for methods that have the field and settings that lack it.

    Raises:
        UserError: No such method, no such field, or a value that the field cannot take.
    """
    from fewshot.methods import METHODS

    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]()
    if logit_scale is not None and "logit_scale" in {field.name for field in fields(method)}:
        method = replace(method, logit_scale=logit_scale)
    method = with_settings(method, settings or {}, name)
    if hasattr(method, "logit_scale"):
        positive(method, "logit_scale", hint="CLIP's is 100")
    return method


def with_settings(method: AnyMethod, settings: Mapping[str, Any], name: str) -> AnyMethod:
    """The dataclass with some of its fields set, from values or from text.

    Raises:
        UserError: No such field, or a value that the field cannot take.
    """
    return replace(method, **parse(type(method), settings, name))


def parse(
    kind: "type[DataclassInstance]", settings: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Field -> its value, where a setting may be text; what is no text is taken as it is.

    Args:
        kind: A method's class.
        settings: Field -> value or text.
        name: The method's name, for messages.

    Raises:
        UserError: No such field, or text that the field cannot take.
    """
    names = [field.name for field in fields(kind)]
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field, value in settings.items():
        if field not in names:
            raise unknown(f"setting of {name}", field, names)
        values[field] = _parsed(field, value, types[field]) if isinstance(value, str) else value
    return values


def fixed_of(
    method: "DataclassInstance", fixed: Mapping[str, Any] | Collection[str], name: str
) -> dict[str, Any]:
    """Field -> the value at which it is fixed.

    Args:
        method: The method.
        fixed: Field -> value or text, or the names of fields that stay as the method has them.
        name: The method's name, for messages.

    Raises:
        UserError: No such field, or text that the field cannot take.
    """
    if isinstance(fixed, Mapping):
        return parse(type(method), fixed, name)
    names = [field.name for field in fields(method)]
    for field in fixed:
        if field not in names:
            raise unknown(f"setting of {name}", field, names)
    return {field: getattr(method, field) for field in sorted(fixed)}


def describe(name: str, methods: Mapping[str, "type[MethodInfo]"]) -> str:
    """A method's documentation, and each setting with what it accepts, its default, text and grid.

    Raises:
        UserError: No such method.
    """
    if name not in methods:
        raise unknown("method", name, methods)
    method = methods[name]
    types, deep = get_type_hints(method), " " * 8
    indented = partial(wrap, width=96, initial_indent=deep, subsequent_indent=deep)
    words, _, _ = inspect.cleandoc(method.__doc__ or "").partition("Attributes:\n")
    about, explained = [words.rstrip(), method.summary], explanations(method)
    lines = ["\n\n".join(filter(None, about)), "", "Settings (--set NAME=VALUE):"]
    for field in fields(method):
        kind = types[field.name]
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        lines.append(f"    {field.name}: {_words(kinds)}; default {field.default}")
        lines += indented(explained.get(field.name, ""))
        if field.name in method.grid:
            values = method.grid[field.name]
            tried = ", ".join(f"{value}" for value in values)
            # One value is the name of a rule, from which a method that tunes itself goes on.
            lines.append(f"{deep}tuning {f'tries {tried}' if len(values) > 1 else 'finds it'}")
    return "\n".join(lines)


def explanations(method: "type[MethodInfo]") -> dict[str, str]:
    """Setting -> its text in the `Attributes:` of the class, or of the one it inherits it from."""
    found: dict[str, str] = {}
    for owner in reversed(method.__mro__):
        _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        entries = re.findall(r"^    ([\w, ]+): (.+(?:\n {8}.+)*)", section, re.MULTILINE)
        for names, text in entries:
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


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
                value = one(text)
                if one is not float or math.isfinite(value):
                    return value
    raise UserError(f"{field} must be {_words(kinds)}; got {text!r}")


def _words(kinds: tuple[Any, ...]) -> str:
    """The values that the types accept, in words."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    return " or ".join([*choices, *(words[kind] for kind in kinds if kind in words)])
