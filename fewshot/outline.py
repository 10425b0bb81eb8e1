"""The methods as their files declare them, read in a tenth of the time that torch takes to import.

A list of methods needs names, docstrings, settings and grids, and none of the functions. So the
outline of a module is that module without functions: its classes with their class variables and
fields, and the constants and types that these use. What comes from other libraries than `STANDARD`
is left empty. Nothing here fits anything.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot.method import MethodInfo

ROOT = Path(__file__).resolve().parents[1]
STANDARD = {"abc", "collections", "dataclasses", "math", "typing"}


class _Empty(type):
    """A class that can be called, subscripted, and asked for anything, and is still empty."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __getitem__(cls, _: Any) -> Any:
        return cls


class Elsewhere(metaclass=_Empty):
    """Stands for whatever comes from a library that is not loaded."""


def declared(package: str) -> Mapping[str, type["MethodInfo"]]:
    """The `METHODS` of a package: themselves where it is imported anyway, else their outlines.

    Args:
        package: `fewshot.methods` or `fewshot.endtoend.methods`.
    """
    imported = sys.modules.get(package)
    found = _outline(package, "METHODS") if imported is None else imported.METHODS
    methods: Mapping[str, type[MethodInfo]] = found
    return methods


@cache
def _outline(module: str, wanted: str) -> Any:
    """The value of a module's name, in the module's outline."""
    if module.partition(".")[0] in STANDARD:
        return getattr(import_module(module), wanted)
    if not module.startswith("fewshot."):
        return Elsewhere
    found: dict[str, Any] = {"__name__": __name__}  # dataclasses look for the module of a class
    statements = _statements(module)
    for name, statement in _needed(wanted, statements):
        if isinstance(statement, ast.ImportFrom):
            [alias] = [one for one in statement.names if name == (one.asname or one.name)]
            found[name] = _outline(str(statement.module), alias.name)
        elif isinstance(statement, ast.Import):
            found[name] = import_module(name) if name in STANDARD else Elsewhere
        elif name not in found:
            exec(compile(ast.Module([statement], []), module, "exec"), found)
    return found.get(wanted, Elsewhere)  # a function


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """Name -> the statement of a module's top level that gives it its value, without functions."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    statements: dict[str, ast.stmt] = {}
    for one in ast.parse(path.read_text(encoding="utf-8")).body:
        match one:
            case ast.Import(names) | ast.ImportFrom(names=names):
                statements |= {alias.asname or alias.name: one for alias in names}
            case ast.ClassDef(name):
                functions = ast.FunctionDef | ast.AsyncFunctionDef
                one.body = [part for part in one.body if not isinstance(part, functions)]
                one.body = one.body or [ast.Pass(lineno=one.lineno, col_offset=0)]
                statements[name] = one
            case ast.AnnAssign(ast.Name(name)) | ast.Assign([ast.Name(name)]):
                statements[name] = one
    return statements


def _needed(wanted: str, statements: Mapping[str, ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """The statements that a name's value depends on, in order of dependence, itself the last."""
    seen: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, ast.stmt]]:
        if name in seen or name not in statements:
            return
        seen.add(name)
        for part in ast.walk(statements[name]):
            if isinstance(part, ast.Name):
                yield from visit(part.id)
        yield name, statements[name]

    return visit(wanted)
