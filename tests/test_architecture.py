"""The rules that docs/extend/architecture.md states, held against every import of the code."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    [ROOT / "cli.py", *(ROOT / "cache").rglob("*.py"), *(ROOT / "fewshot").rglob("*.py")]
)
ENCODERS = ("open_clip", "torchvision", "cache.models", "cache.extract")
# Folders of fewshot/ that see images or train a model; all others learn from stored features.
WITH_ENCODER = {
    "adapters", "automatic", "bench", "commands", "doctor", "endtoend", "demo", "serving",
    "teaching",
}  # fmt: skip


def name_of(file: Path) -> str:
    """The module's dotted name; a package's is that of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


@cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """What the module imports, anywhere in it: (module, name); the name is empty for a module."""
    found = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((inner, "") if inner in MODULES else (node.module or "", alias.name))
    return tuple(found)


def ours(module: str) -> Iterator[str]:
    """Those of our modules that the module imports."""
    yield from {target for target, _ in imports(module) if target in MODULES} - {module}


def room(module: str) -> str:
    """The folder that the module lies in, or the module itself at the root of a package."""
    parts = module.split(".")
    if parts[0] not in ("cache", "fewshot") or len(parts) == 1:
        return parts[0]
    return ".".join(parts[:2])


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one cycle; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_through_others() -> None:
    graph = {m: set(ours(m)) - {"fewshot"} for m in MODULES}
    assert not cycle(graph)


def test_no_folder_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        graph[room(module)] |= {room(target) for target in ours(module)} - {room(module)}
    graph.pop("fewshot", None)  # the table of public names, which looks them up when asked
    assert not cycle({k: v - {"fewshot"} for k, v in graph.items()})


def test_a_cycle_would_be_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not cycle({"a": {"b", "c"}, "b": {"c"}})


def within(package: str) -> list[str]:
    """The package's modules."""
    return [m for m in MODULES if m.split(".")[0] == package]


def test_encoding_knows_nothing_of_methods() -> None:
    assert within("cache")
    assert not [(m, t) for m in within("cache") for t in ours(m) if not t.startswith("cache")]


def test_the_library_knows_nothing_of_the_command_line() -> None:
    library = [m for m in within("fewshot") if not m.startswith("fewshot.commands")]
    above = ("cli", "typer", "fewshot.commands")
    assert not [(m, t) for m in library for t, _ in imports(m) if t.startswith(above)]


def test_methods_on_features_import_no_encoder() -> None:
    light = [m for m in within("fewshot") if not WITH_ENCODER & {*m.split(".")}]
    assert len(light) > 50
    assert not [(m, t) for m in light for t, _ in imports(m) if t.startswith(ENCODERS)]


def test_nobody_imports_a_private_name() -> None:
    assert not [
        (m, t, name)
        for m in MODULES
        for t, name in imports(m)
        if t in MODULES and name.startswith("_") and not name.startswith("__")
    ]


def test_base_names_are_unique() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        if file.stem != "__init__":
            places[file.stem].append(name_of(file))
    assert not {stem: names for stem, names in places.items() if len(names) > 1}


def test_no_two_public_classes_have_the_same_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_no_public_name_is_that_of_a_module_beside_it() -> None:
    # Importing the module would put it in the place of the function: `fewshot.transfer(...)` then
    # failed, but only where somebody had imported `fewshot.transfer` the module before.
    import fewshot

    taken = {m.removeprefix("fewshot.") for m in MODULES if m.startswith("fewshot.")}
    assert taken.isdisjoint(fewshot.__all__)
