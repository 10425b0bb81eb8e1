import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fewshot

SOURCE = ast.parse(Path(fewshot.__file__).read_text(encoding="utf-8"))


def test_type_checkers_see_each_public_name_where_it_is_imported_from() -> None:
    """The imports under TYPE_CHECKING and the table used when running are the same."""
    [checked] = [node for node in SOURCE.body if isinstance(node, ast.If)]
    seen = {
        (node.module, name.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    table = ast.literal_eval(
        next(
            node.value
            for node in SOURCE.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES"
        )
    )
    assert seen == {(module, name) for module, names in table.items() for name in names}
    assert sorted(name for _, name in seen) == sorted(fewshot.__all__)


@pytest.mark.parametrize("name", fewshot.__all__)
def test_each_public_name_can_be_had(name: str) -> None:
    assert getattr(fewshot, name) is not None
    assert name in dir(fewshot)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fewshot' has no attribute 'evalute'"):
        fewshot.evalute  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, fewshot\n"
        "ours = [m for m in sys.modules if m.partition('.')[0] in ('fewshot', 'cache')]\n"
        "print(ours, 'numpy' in sys.modules)\n"
        "fewshot.Sample\n"
        "print('fewshot.sampling' in sys.modules, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "['fewshot'] False\nTrue False\n"
