import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from fewshot.endtoend.methods import METHODS as TRAINED
from fewshot.method import MethodInfo
from fewshot.methods import METHODS
from fewshot.outline import declared
from fewshot.settings import describe

PACKAGES = [("fewshot.methods", METHODS), ("fewshot.endtoend.methods", TRAINED)]


@pytest.mark.parametrize(("package", "methods"), PACKAGES)
def test_the_outline_says_of_every_method_what_its_class_says(
    package: str, methods: Mapping[str, type[MethodInfo]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, package)
    found = declared(package)
    assert list(found) == list(methods)
    for name, method in methods.items():
        assert found[name] is not method
        assert describe(name, found) == describe(name, methods)
        assert facts(found[name]) == facts(method)


def facts(method: type[MethodInfo]) -> dict[str, Any]:
    """What a method says of itself and of its settings."""
    named = ("name", "summary", "grid", "learns_from", "transductive", "blends", "__doc__")
    said = {name: getattr(method, name) for name in named}
    return said | {field.name: (field.type, field.default) for field in fields(method)}


def test_no_method_of_an_outline_can_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fewshot.methods")
    assert not hasattr(declared("fewshot.methods")["gda"], "fit")


def test_methods_that_are_imported_anyway_stand_for_themselves() -> None:
    assert declared("fewshot.methods") is METHODS


def test_a_method_is_described_by_what_each_setting_is_takes_and_tries() -> None:
    told = describe("maple", TRAINED)  # inherits its settings
    assert "depth: a whole number; default 9\n        First blocks with prompts, d;" in told
    told = describe("gda", METHODS)
    assert "Attributes:" not in told
    assert (
        "    alpha: a number; default 8.0\n"
        "        Weight of the Gaussian term; 0 is zero-shot CLIP.\n"
        "        tuning tries 0.5, 1.0, "
    ) in told
    assert max(map(len, told.splitlines())) <= 100
    told = describe("stack", METHODS)
    assert "        Weight of the text probe.\n        tuning finds it\n" in told
