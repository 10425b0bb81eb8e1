"""Help, errors, docs and public docstrings are in plain English; docs/extend/style.md says how."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import cli

ROOT = Path(__file__).parents[1]
SOURCES = sorted([ROOT / "cli.py", *ROOT.glob("cache/**/*.py"), *ROOT.glob("fewshot/**/*.py")])
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

WORDS = {  # a pattern -> what to write instead
    r"learnt": "learned",
    r"mend(s|ed|ing)?": "fix",
    r"put right": "fix",
    r"(?<!at )least(?!([- ]squares))": "minimum, smallest, lowest",
    r"greatest": "maximum, largest, highest",
    r"as ever": "as everywhere else",
    r"wants": "needs, or: must be",
    r"hangs? on": "depends on",
    r"goes on": "continues",
    r"anew": "again",
    r"in \w+( \w+)?'s stead": "in place of",
    r"just so": "exactly",
    r"hence|whilst|thereof|whereof|hitherto": "so, while, of it, until now",
    r"seeds?: What draws": "random seed for drawing",
    r"(told|tells?|telling)(?!( \S+){0,4} apart)": "says, shows, prints",
    r"(colour|behaviour|favour|neighbour|honour|labour)\w*": "-or",
    r"(un|mis)?labell\w+|modell\w+|cancell(ed|ing)|travell\w+": "one l",
    r"(normal|initial|optim|general|regular|serial|recogn|organ|minim|maxim|standard)is(e|ed|es"
    r"|ing|ation|er)": "-iz-",
    r"(un)?centred?|centring|grey|licence|judgement|analyse[ds]?": "center, gray, license, ...",
}
ANY = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
# Texts in which a word of the list is right.
EXCEPTIONS = {
    "to `least` along": "the name of a parameter",
    "or licence": "the older spelling of a key of manifests, still read",
}
COUNTED = (
    "cells", "class names", "classes", "columns", "datasets", "files", "folds", "groups", "images",
    "labeled photos", "labels", "lines", "methods", "photos", "predictions", "problems", "prompts",
    "results", "rows", "runs", "seeds", "shots", "stores", "templates", "values", "views",
)  # fmt: skip
# Numbers before such a noun that are two or more, or limits.
NEVER_ONE = {
    "self.n_classes", "manifest.n_classes", "limit.images:,", "limit.logits:,", "len(alike):,",
    "len(datasets)", "len(x)",
}  # fmt: skip
Texts = Iterator[tuple[str, str]]
STARTS = ("What ", "Whether ", "Those ", "Whose ", "Do nothing")


def helps() -> Texts:
    """Where and what: the help of every command and option."""
    group: Any = cli.tree(cli.app)
    for name, command in group.commands.items():
        yield f"fewshot {name}", command.help
        for parameter in command.params:
            yield f"fewshot {name} {parameter.name}", parameter.help


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def errors() -> Texts:
    """Where and what: the literal parts of every message that is raised."""
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("UserError", "unknown")
            ):
                literals = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
                parts = [n.value for n in literals if isinstance(n.value, str)]
                yield f"{path.relative_to(ROOT)}:{node.lineno}", " … ".join(parts)


def docstrings() -> Texts:
    """Where and what: the docstring of every module, and of every public class and function."""
    for path in SOURCES:
        tree = parsed(path)
        where = str(path.relative_to(ROOT))
        yield where, ast.get_docstring(tree) or ""
        yield from _of_public(tree, where)


def _of_public(node: ast.AST, where: str) -> Texts:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield f"{where}:{child.lineno} {child.name}", ast.get_docstring(child) or ""
            yield from _of_public(child, where)


def prose() -> Texts:
    """Where and what: every line of the pages outside code blocks; style.md lists the words."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.S | re.M)
        if path.name != "style.md":
            for number, line in enumerate(text.splitlines(), 1):
                yield f"{path.relative_to(ROOT)}:{number}", re.sub(r"`[^`]*`", "", line)


def faults(text: str) -> list[str]:
    """The words of the list that the text has, each with what to write instead."""
    text = " ".join(text.split())
    for right in EXCEPTIONS:
        text = text.replace(right, "")
    if not ANY.search(text):  # most, and the search for each word takes ten times as long
        return []
    return [
        f"{found[0]!r} (write: {better})"
        for word, better in WORDS.items()
        for found in re.finditer(rf"\b(?:{word})\b", text, re.IGNORECASE)
    ]


@cache
def listed(texts: Callable[[], Texts]) -> list[tuple[str, str]]:
    return list(texts())


@pytest.mark.parametrize("texts", [helps, errors, docstrings, prose])
def test_texts_are_in_plain_english(texts: Callable[[], Texts]) -> None:
    every = listed(texts)
    assert len(every) > 100
    assert [f"{where}: {fault}" for where, text in every for fault in faults(text)] == []


def test_docstrings_start_with_a_verb_or_a_noun() -> None:
    texts = [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", ast.get_docstring(node) or "")
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    assert len(texts) > 2000
    assert [f"{where}: {text[:40]}" for where, text in texts if text.startswith(STARTS)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Who told you?", ["told"]),
        ("Two classes that nothing tells apart.", []),
        ("Two classes that nothing in the picture tells apart.", []),
        ("At least one, by least squares.", []),
        ("The least of all; labelled\nas ever.", ["least", "as ever", "labelled"]),
        ("Normalised to the centre.", ["Normalised", "centre"]),
    ],
)
def test_a_word_of_the_list_is_found(text: str, found: list[str]) -> None:
    assert sorted(fault.split("'")[1] for fault in faults(text)) == sorted(found)


def test_no_exception_is_left_over() -> None:
    every = " ".join(
        " ".join(text.split()) for texts in (docstrings, errors) for _, text in listed(texts)
    )
    pages = " ".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert [right for right in EXCEPTIONS if right not in every + pages] == []


def test_a_count_agrees_with_its_noun() -> None:
    # "1 of 3 images" and "each of the 3 classes" are right, whatever the numbers.
    counted = re.compile(
        r"(?<!of )(?<!of the )\{([^{}]*(?:len\(|sum\(|\.size|n_|shots|total|bad|:,)[^{}]*)\} "
        rf"(?:{'|'.join(COUNTED)})\b"
    )
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {found[0]}"
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.JoinedStr)
        for found in counted.finditer(ast.unparse(node))
        if found[1] not in NEVER_ONE
    ]
    assert wrong == [], "errors.count says 1 image and 2 images"
